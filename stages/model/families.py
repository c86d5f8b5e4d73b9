"""Families of pretrained weights: whose they are, under which licence, and in which languages their texts were.

Licences are those of the weights' own pages: the cards on the Hugging Face hub, or the
repositories that `licence` names. They can change, so the card of the weights decides. Nothing is
downloaded to say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

Commercial = Literal["yes", "no", "see its card"]
"""Whether a licence allows commercial use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """Weights of one origin, with one licence.

    Attributes:
        name: Name for people.
        licence: SPDX name of the licence of the weights, or in plain words what stands in its place.
        commercial: Whether the licence allows commercial use.
        languages: Languages of the texts that they were trained with.
        weights: Patterns of `NAME/TAG`, as open_clip names weights; `*` stands for anything.
        model_types: `model_type` in the `config.json` of folders of transformers.
    """

    name: str
    licence: str
    commercial: Commercial
    languages: str
    weights: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()

    @property
    def reads_english_only(self) -> bool:
        """Whether the texts were English alone."""
        return self.languages == "English"


FAMILIES: Final = (
    ModelFamily(
        name="demo", licence="Apache-2.0", commercial="yes", languages="English", weights=("demo",)
    ),
    ModelFamily(
        name="photo",
        licence="non-commercial",
        commercial="no",
        languages="English",
        weights=("photo",),
    ),
    ModelFamily(
        name="OpenAI CLIP",
        # The repository's. The card of the model advises against any deployment.
        licence="MIT",
        commercial="see its card",
        languages="English",
        weights=("*/openai",),
    ),
    ModelFamily(
        name="MetaCLIP 2",
        licence="CC-BY-NC-4.0",
        commercial="no",
        languages="many",
        weights=("*/metaclip2_*",),
        model_types=("metaclip_2",),
    ),
    ModelFamily(
        name="MetaCLIP",
        licence="CC-BY-NC-4.0",
        commercial="no",
        languages="English",
        weights=("*/metaclip_*",),
    ),
    ModelFamily(
        name="DFN",
        # Apple's licence of models for research, also below.
        licence="Apple AMLR",
        commercial="no",
        languages="English",
        weights=("*/dfn2b*", "*/dfn5b*"),
    ),
    ModelFamily(
        name="MobileCLIP, MobileCLIP 2",
        licence="Apple AMLR",
        commercial="no",
        languages="English",
        weights=("MobileCLIP*/*",),
    ),
    ModelFamily(
        name="SigLIP 2",
        licence="Apache-2.0",
        commercial="yes",
        languages="many",
        weights=("*-SigLIP2*/webli",),
        model_types=("siglip2",),
    ),
    ModelFamily(
        name="SigLIP, multilingual",
        licence="Apache-2.0",
        commercial="yes",
        languages="many",
        weights=("*-SigLIP-i18n-*/webli",),
    ),
    ModelFamily(
        name="SigLIP",
        licence="Apache-2.0",
        commercial="yes",
        languages="English",
        weights=("*-SigLIP*/webli",),
    ),
    ModelFamily(
        name="PE-Core",
        licence="Apache-2.0",
        commercial="yes",
        languages="English",
        weights=("PE-Core-*/*",),
    ),
    ModelFamily(
        name="EVA-CLIP", licence="MIT", commercial="yes", languages="English", weights=("EVA0*/*",)
    ),
    ModelFamily(
        name="ViTamin", licence="MIT", commercial="yes", languages="English", weights=("ViTamin*/*",)
    ),
    ModelFamily(
        name="CLIPA", licence="Apache-2.0", commercial="yes", languages="English", weights=("*-CLIPA*/*",)
    ),
    ModelFamily(
        name="NLLB-CLIP",
        licence="CC-BY-NC-4.0",
        commercial="no",
        languages="many",
        weights=("nllb-clip-*/*",),
    ),
    ModelFamily(
        name="LAION, multilingual",
        licence="MIT",
        commercial="yes",
        languages="many",
        weights=("xlm-roberta-*/*",),
    ),
    ModelFamily(
        name="DataComp",
        licence="MIT",
        commercial="yes",
        languages="English",
        weights=("*/datacomp_*", "*/commonpool_*"),
    ),
    ModelFamily(
        name="OpenCLIP, LAION",
        licence="MIT",
        commercial="yes",
        languages="English",
        weights=("*/laion*", "*/mscoco_finetuned_laion*", "*/yfcc15m", "*/cc12m"),
    ),
    ModelFamily(
        name="TIPSv2",
        # The cards'. The repository names CC-BY-4.0 for all that is no software.
        licence="Apache-2.0",
        commercial="yes",
        languages="English",
        model_types=("tipsv2",),
    ),
    ModelFamily(
        name="AltCLIP",
        licence="CreativeML OpenRAIL-M",
        commercial="see its card",
        languages="English, Chinese, or more",
        model_types=("altclip",),
    ),
    ModelFamily(
        name="Chinese-CLIP",
        # The repository's. The cards name none.
        licence="MIT",
        commercial="see its card",
        languages="Chinese",
        model_types=("chinese_clip",),
    ),
)
"""The families. Of those whose patterns fit, the first one holds."""


def family_of(weights: str) -> ModelFamily | None:
    """Return the family of the weights `NAME/TAG`, or of a bundled model; None for unknown ones.

    >>> family_of("ViT-B-16/laion2b_s34b_b88k").licence
    'MIT'
    """
    return _first(
        family for family in FAMILIES if any(fnmatchcase(weights, pattern) for pattern in family.weights)
    )


def family_of_folder(model_type: str) -> ModelFamily | None:
    """Return the family of folders with this `model_type`; None where folders of several families have it.

    >>> family_of_folder("tipsv2").name
    'TIPSv2'
    """
    return _first(family for family in FAMILIES if model_type in family.model_types)


def _first(families: Iterable[ModelFamily]) -> ModelFamily | None:
    return next(iter(families), None)
