"""The manifest of a finished dataset and its card: what made the rows, and how many there are."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.paths import with_absolute_paths
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.croissant import croissant_text
from phrasebox.pipeline.output.report import Report
from phrasebox.stages.contract.schema import SCHEMA_VERSION, dataset_schema
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.catalog import CATALOG
from phrasebox.stages.model.config import AUTO
from phrasebox.stages.sources.source import HEAT_MAPS, SOURCES
from phrasebox.stages.write import CardOrigin, ScoreOrigin, Tally, dataset_card

LIBRARIES: Final = (
    "torch",
    "open_clip_torch",
    "spacy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "ray",
)
"""The distributions that rows and their files depend on, beside the parser's model: rows of other
versions may differ in their last digits. None of them is imported."""

ENVIRONMENTS: Final = "environments"
"""The key of run.json, and of `run` in dataset.json, for the versions of Python and of the
libraries: those of each start that may have made rows, in their order, and equal ones once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made the rows of a dataset.

    Attributes:
        config: The configuration, as it was in the end.
        model: The model's `name`, for the card, and the layout of its checkpoint.
        calibration: Identifies the calibration of the scores; None if they are no probabilities.
        scores: What it says of the scores.
        may_sign: Whether this user's runs made all rows, so that the manifest may be signed.
    """

    config: RunConfig
    model: Mapping[str, str]
    calibration: str | None = None
    scores: ScoreOrigin = field(
        default_factory=lambda: ScoreOrigin(fitted_to=None, doubt=None, presence=None)
    )
    may_sign: bool = True

    def card(self, total: Tally) -> str:
        """Return the dataset's card; `total` counts its rows."""
        config = self.config
        source = None if config.source.makes_heat_maps else SOURCES[config.source.kind]
        origin = CardOrigin(
            model=self.model["name"],
            about_model=CATALOG[self.model["name"]].about if self.model["name"] in CATALOG else "",
            precision=None if config.model.precision == AUTO else config.model.precision,
            explainer=config.explain.kind,
            source=None if source is None else (source.regions_come_from, source.score_means),
            has_boxes=config.source.makes_heat_maps and config.source.kind != HEAT_MAPS,
            **self.scores,
        )
        return dataset_card(total, dataset_schema(config.output.columns), origin)

    def croissant(self, values: Json) -> str:
        """Return the dataset's Croissant metadata; `values` as in `to_json`."""
        return croissant_text(
            values, dataset_schema(self.config.output.columns), "Regions for the phrases of captions"
        )

    def origin(self, run: Json) -> Json:
        """Return what `dataset.json` says before the end of a run, which each shard repeats; `run` as in `to_json`."""
        values = self.to_json(Tally(), Report(), run)
        names = ("counts", "caption_doubt", "wall_time_s", "stages", "card_sha256")
        return {key: value for key, value in values.items() if key not in names}

    def to_json(self, total: Tally, report: Report, run: Json) -> Json:
        """Return the plain values of `dataset.json`.

        Args:
            total: The counts of the dataset.
            report: The engine's counts.
            run: What the rows depend on, see `run.json`.
        """
        return {
            "format": "phrasebox",
            "schema_version": SCHEMA_VERSION,
            "phrasebox_version": __version__,
            "model": dict(self.model),
            "model_fingerprint": run["model_fingerprint"],
            "calibration": self.calibration,
            "scores": dict(self.scores),
            **({} if (concepts := self.config.source.concept_count) is None else {"concepts": concepts}),
            "config": with_absolute_paths(self.config.model_dump(mode="json")),
            "counts": {
                "read": report.samples_read,
                **total.counts(),
                "skipped_by_reason": dict(sorted(report.skipped.items())),
            },
            "caption_doubt": None if total.doubt is None else total.doubt.to_json(),
            "wall_time_s": round(report.wall_time_s, 3),
            "stages": {name: stage.to_json() for name, stage in report.stages.items()},
            "card_sha256": hashlib.sha256(self.card(total).encode()).hexdigest(),
            "run": run,
        }


def environments_with(earlier: Sequence[Json], spacy_models: Sequence[str]) -> list[Json]:
    """Return the environments of earlier starts with that of this process, which has parsers' models."""
    here = versions_here(spacy_models)
    return [*earlier, *([] if here in earlier else [here])]


def versions_here(spacy_models: Sequence[str]) -> Json:
    """Return the versions of Python, of `LIBRARIES` and of the parsers' models, those that are installed."""
    versions = {"python": platform.python_version()}
    for name in (*LIBRARIES, *spacy_models):
        # People may have built OpenCV, or give the path of a parser's model.
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
