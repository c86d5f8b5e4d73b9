"""The evidence of a region, the score made from it, and the calibration that makes a probability of it.

The score is larger for regions more likely to be right. It is no probability: it ranks. A
calibration is a logistic regression on the evidence, for one model and one set of settings
(`pipeline/calibrate/truth_fit.py` fits it). One that knows presence alone has no weights
(`pipeline/run/presence_fit.py`): scores then still rank, as the product of the score and
presence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Final, Literal, Self

from pydantic import TypeAdapter, ValidationError, model_validator

from phrasebox.stages.contract.errors import ConfigError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.json_files import first_problem
from phrasebox.stages.scores import detected
from phrasebox.stages.scores.calibration_versions import FORMAT, lift_calibration
from phrasebox.stages.scores.captioning import Captioning
from phrasebox.stages.scores.detected import BoxEvidence, DetectorPresence
from phrasebox.stages.scores.fits import Number, Regression
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.learned_box import EVIDENCE, BoxModel
from phrasebox.stages.scores.presence import Presence


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence of one region. Heat is the map with its lowest value 0 and its highest 1.

    Attributes:
        energy: Share of the map's total heat inside the region, 0 .. 1.
        area: Share of the image that the region covers, > 0 .. 1.
        mean_inside: Mean heat inside the region, 0 .. 1.
        mean_outside: Mean heat of everything else, 0 .. 1; 0 if there is nothing else.
        peak: Highest heat inside the region, 0 .. 1; 1 where the map's maximum is inside.
        threshold: Heat at which the map was cut, 0 .. 1.
        similarity: Cosine of image and phrase, -1 .. 1; the mean where several phrases share a map.
        of_box: What a `BoxModel` measures, by the names of `learned_box.EVIDENCE`; empty without one.
    """

    energy: float
    area: float
    mean_inside: float
    mean_outside: float
    peak: float
    threshold: float
    similarity: float = 0.0
    of_box: Mapping[str, float] = field(default_factory=dict)

    @property
    def features(self) -> dict[str, float]:
        """The features that a calibration weighs, by name."""
        return {name: measure(self) for name, measure in FEATURES.items()} | dict(self.of_box)

    @property
    def contrast(self) -> float:
        """How much hotter the region is than everything else, 0 .. 1."""
        return max(0.0, self.mean_inside - self.mean_outside)

    @property
    def score(self) -> float:
        """Energy times contrast, 0 .. 1: high for a region that is hot, and the only hot one.

        It has six decimals, because rounding hides the order of a sum over pixels.
        """
        return round(min(1.0, self.energy * self.contrast), 6)


MOST_BYTES: Final = 16 << 20  # of a calibration's file, which has some 300 KB

FEATURES: Final[dict[str, Callable[[Evidence], float]]] = {
    **{name: attrgetter(name) for name in ("energy", "mean_inside", "mean_outside", "threshold", "peak")},
    "log_area": lambda evidence: math.log(evidence.area),
    "log_area_squared": lambda evidence: (
        math.log(evidence.area) ** 2
    ),  # very small and very large are both doubtful
    "similarity": attrgetter("similarity"),
}
"""Name -> feature of every calibration of heat maps. One with a `BoxModel` also weighs
`learned_box.EVIDENCE`, and one of another source `detected.FEATURES` instead."""


CAPTION_FACTS: Final = ("of_thing_captions", "of_thing_phrases")
"""Those of the `learned_box.EVIDENCE` that change most with the number of captions."""

_CAPTIONINGS: Final = TypeAdapter(tuple[Captioning, ...])


def feature_names(calibration: Calibration | None) -> list[str]:
    """Return the names of the features of regions that are made with a calibration."""
    if calibration is not None and "log_odds" in calibration.weight:
        measured = {detected.SIMILARITY} & calibration.weight.keys()
        return [*detected.FEATURES, *measured]
    has_box = calibration is not None and calibration.box is not None
    return [*FEATURES, *(EVIDENCE if has_box else ())]


def at_share(presence: float, fitted_share: float, expected_share: float) -> float:
    """Return the probability that a phrase is present if another share of such phrases is absent: Bayes' rule.

    The odds of presence over those of the fit stay the same (Saerens, Latinne and Decaestecker,
    Neural Computation 14, 2002). The shares of the fit and of these phrases lie between 0 and
    1; presence is 0 .. 1, as the result.

    >>> at_share(0.8, fitted_share=0.5, expected_share=0.05)
    0.987013
    """
    present = presence * (1.0 - expected_share) / (1.0 - fitted_share)
    absent = (1.0 - presence) * expected_share / fitted_share
    return round(present / (present + absent), 6)


class Calibration(Regression):
    """The probability that a region is right: 1 / (1 + exp(-(bias + sum of weight * (feature - mean) / scale))).

    Attributes:
        bias: The constant term.
        made_with: The model's fingerprint and the settings of explain and regions, or of the
            source, that it holds for; plain values.
        made_from: Where it was fitted, for people, and `precisions` and `captionings`, see there.
        presence: How likely a phrase is in the image at all; None if the calibration does not
            know. The regression is then about phrases that are there.
        cut: Where the rule `fitted` cuts; None if another rule does.
        box: Where boxes are, given the map; None if nobody fitted it.
    """

    names = (*FEATURES, *EVIDENCE, *detected.FEATURES)

    format: Literal["phrasebox calibration 3"] = FORMAT
    bias: Number
    made_with: Json
    made_from: Json
    presence: Presence | DetectorPresence | None = None
    cut: FittedCut | None = None
    box: BoxModel | None = None

    @model_validator(mode="after")
    def _check_evidence(self) -> Self:
        if self.box is None and self.weight.keys() & set(EVIDENCE):
            raise ValueError("expected box, whose evidence has weights")
        try:
            _CAPTIONINGS.validate_python(self.made_from.get("captions", ()))
        except ValidationError as error:
            raise ValueError("expected captions and mentions above 0 in made_from.captions") from error
        return self

    @property
    def absent_share(self) -> float:
        """The share of absent phrases in what presence was fitted to."""
        return 0.5 if self.presence is None else self.presence.absent_share

    @property
    def precisions(self) -> Sequence[str]:
        """The precisions of a model for which it was shown to hold, that of the fit first; fp32 if it does not say."""
        precisions: Sequence[str] = self.made_from.get("precisions", ["fp32"])
        return precisions

    @property
    def captionings(self) -> Sequence[Captioning]:
        """How images were captioned for which it was shown to hold; empty if it does not say."""
        return _CAPTIONINGS.validate_python(self.made_from.get("captions", ()))

    @property
    def digest(self) -> str:
        """SHA-256 of its file."""
        return sha256(self.to_json().encode()).hexdigest()

    @property
    def exponent(self) -> float:
        """The power of the heat of the maps that it was fitted to, see `RegionsConfig.exponent`."""
        regions = self.made_with.get("regions")
        exponent = regions.get("exponent") if isinstance(regions, dict) else None
        return float(exponent) if isinstance(exponent, int | float) else 1.0

    @property
    def is_generic(self) -> bool:
        """Whether it was fitted to the maps of several models, and holds for those of no model as it is."""
        return not self.made_with.keys() & {"model", "source"} and bool(self.made_with)

    @property
    def margin(self) -> float | None:
        """How much too high its scores may be, because it was fitted to other models, 0 .. 1; None if it was not."""
        margin = self.made_from.get("margin")
        return float(margin) if isinstance(margin, int | float) else None

    @property
    def of_regions(self) -> bool:
        """Whether it makes probabilities of scores, and does not know presence alone."""
        return bool(self.weight)

    @property
    def fitted_to(self) -> str:
        """The images of the fit, for people."""
        if self.margin is not None:
            return f"{self.made_from.get('images', 'some')} photographs with boxes and the maps of other models"
        if "reviews" in self.made_from:
            return f"{self.made_from['reviews']} reviewed regions of the dataset {self.made_from.get('dataset', '')}"
        if not self.of_regions:
            return f"the captions of {self.made_from.get('images', 'some')} images, without annotations"
        return (
            f"{self.made_from.get('images', 'some')} images with the boxes of "
            f"{self.made_from.get('truth', 'a ground truth')}"
        )

    def probability(self, evidence: Evidence | BoxEvidence) -> float:
        """Return the probability that a region is right, 0 .. 1, with six decimals."""
        return self.logistic(evidence.features, self.bias)

    def shift(self, evidence: Sequence[Evidence]) -> tuple[str, float]:
        """Return the feature with the mean farthest from the fit's, and its shift in standard deviations.

        Evidence of the box does not count: `caption_shift` judges what it tells of captions.
        """
        return self._farthest(evidence, FEATURES)

    def caption_shift(self, evidence: Sequence[Evidence]) -> tuple[str, float]:
        """Return the same of the `CAPTION_FACTS`; a shift of 0 if they have no weights."""
        return self._farthest(evidence, CAPTION_FACTS)

    def _farthest(self, evidence: Sequence[Evidence], names: Iterable[str]) -> tuple[str, float]:
        features = [part.features for part in evidence]
        shifts = {
            name: (fmean(values[name] for values in features) - self.mean[name]) / self.scale[name]
            for name in names
            if name in self.weight
        }
        farthest = max(shifts, key=lambda name: abs(shifts[name]), default="")
        return farthest, shifts.get(farthest, 0.0)

    def to_json(self) -> str:
        """Return the content of a file that `read_calibration` reads."""
        presence = self.presence and self.presence.model_dump(mode="json", exclude_none=True)
        return json.dumps(self.model_dump(mode="json") | {"presence": presence}, indent=1) + "\n"


def score_of(
    calibration: Calibration | None, evidence: Evidence | BoxEvidence, presence: float | None
) -> float:
    """Return the score of a region, 0 .. 1, with six decimals.

    Args:
        calibration: Makes a probability of the evidence; without one the score only ranks.
        evidence: The evidence of the region.
        presence: That of its phrase, None if it is unknown.
    """
    score = calibration.probability(evidence) if calibration and calibration.of_regions else evidence.score
    return score if presence is None else round(score * presence, 6)


def read_calibration(path: Path) -> Calibration:
    """Return the calibration in a file, as `calibration_of`. Raise ConfigError also if the file is missing."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(
                f"{path} is larger than {MOST_BYTES >> 20} MB: no calibration", key="regions.calibration"
            )
        return calibration_of(path.read_bytes(), path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key="regions.calibration") from error


def calibration_of(content: str | bytes, path: object) -> Calibration:
    """Return the calibration that a file's content holds, also one of an older format.

    Raise ConfigError, which names the file, for one of a newer format, and for other content.
    """
    try:
        return Calibration.model_validate(lift_calibration(content, path))
    except ValueError as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else one_line(error)
        raise ConfigError(
            f"{path} is no calibration, phrasebox calibrate makes one: {problem}", key="regions.calibration"
        ) from error
