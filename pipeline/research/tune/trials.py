"""The trials of `phrasebox tune`: maps and regions with changed settings, judged by ground truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
from rich.console import Console

from pipeline.calibration import presence_in
from pipeline.config import RunConfig, sets_any
from pipeline.evaluate.cut_fit import fit_cut_to_rows
from pipeline.evaluate.estimates import Estimate, weighted_estimate
from pipeline.evaluate.evaluation_set import EvaluationSet, process_input
from pipeline.evaluate.metrics import is_right, judge_answers, value_of
from pipeline.evaluate.reviews.truth import Boxes
from pipeline.steps import build_steps, build_steps_in_memory
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import Record
from stages.contract.schema import records_to_rows
from stages.contract.values import Floats, Json
from stages.explain import kinds_for
from stages.explain.config import ExplainerConfig
from stages.explain.stage import ExplainStage, subtract_others
from stages.read import Reader
from stages.regions.config import RegionsConfig
from stages.regions.cut_rules import FittedCut
from stages.regions.score import Calibration
from stages.regions.stage import RegionsStage

if TYPE_CHECKING:
    from stages.shared.model.clip import ClipModel

Changes = Json  # keys of the configuration with their values

DecidingFigure = Literal[
    "pointing", "pointing_off_centre", "box_recall", "box_iou", "mask_iou", "precision", "agreement"
]
"""Metrics; `precision`: the share of right regions (a box IoU of 0.5 or more); `agreement`,
with reviews: the share of right regions among the phrases' best regions, as far as people know,
see `TuningSession._judge_image`."""

FIGURES: Final[tuple[str, ...]] = get_args(DecidingFigure)
_COUNTED: Final = {
    "regions": "precision",
    "targets": "box_recall",
    "reviewed": "agreement",
}  # count -> figure

TrialFigures = Mapping[str, float | int | None]
"""Name -> figure, None without any value; and the counts of regions, targets and reviewed
regions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of a try.

    Attributes:
        figures: Figures and counts by name.
        parts: Sum and count of the figure that decides, for each image, (images, 2).
    """

    figures: TrialFigures
    parts: Floats

    @property
    def phrases(self) -> int:
        """The number of phrases with a known answer."""
        return int(self.figures["reviewed"] or self.figures["targets"] or 0)

    def gain_over(self, baseline: Trial) -> Estimate:
        """Return the difference of the figures with its interval, over images drawn together."""

        def difference(weights: Floats) -> float:
            total, n = weights @ self.parts
            baseline_total, m = weights @ baseline.parts
            return float(total / n - baseline_total / m) if n and m else math.nan

        return weighted_estimate(difference, np.arange(len(self.parts)))


@dataclass(kw_only=True)
class TuningSession:
    """The images with their maps, and the ground truth that judges the regions.

    Attributes:
        evaluation_set: The dataset and its ground truth.
        wrong: Boxes that people called wrong; None without reviews.
        by: The figure that decides.
        console: Shows the progress.
    """

    evaluation_set: EvaluationSet
    wrong: Boxes | None = None
    by: DecidingFigure = "box_iou"
    console: Console
    _maps: dict[str, list[Record]] = field(default_factory=dict)  # by the settings that they depend on
    _dataset_records: list[Record] = field(default_factory=list)  # with the maps of the dataset's settings
    _reader: Reader = field(init=False)  # `start` sets it

    @cached_property
    def model(self) -> ClipModel:
        """The model, loaded once."""
        # torch takes seconds to import, and verbs import this.
        from stages.shared.model.describe import describe  # noqa: PLC0415
        from stages.shared.model.load import load  # noqa: PLC0415

        config = self.config({}).model
        return load(
            describe(config), device=config.device, precision=config.precision, threads=config.threads
        )

    def config(self, changes: Changes) -> RunConfig:
        """Return the dataset's configuration with changes. Raise ConfigError if they make no sense."""
        extra_settings = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        return replace(
            self.evaluation_set, settings=[*self.evaluation_set.settings, *extra_settings]
        ).config()

    def start(self, most: int) -> Trial:
        """Compute the maps of `most` images, and measure the dataset's settings with its calibration.

        Raise InputError if no phrase has a known place, and ConfigError if the figure that decides
        has no value.
        """
        # Grabcut keeps the pixels.
        map_settings = ["explain.contrast=0", "regions.refine=grabcut", "regions.calibration=none"]
        evaluation_set = replace(
            self.evaluation_set, settings=[*self.evaluation_set.settings, *map_settings]
        )
        map_steps = evaluation_set.full_steps()
        steps = build_steps(self.config({}))
        dataset = self.evaluation_set.dataset
        dataset_calibration = dataset.manifest["calibration"]
        has_changes = sets_any(self.evaluation_set.settings, ("explain", "regions"))
        if dataset_calibration not in (None, steps.calibration_digest) and not has_changes:
            raise ConfigError(
                f"{dataset.path} was made with another one than is found now", key="regions.calibration"
            )
        calibration = steps.calibration if dataset_calibration or has_changes else None
        if calibration is not None and calibration.presence is not None:
            model_stage = map_steps.model_stage.with_presence(presence_in(calibration))
            map_steps = replace(map_steps, model_stage=model_stage)
        self._reader = evaluation_set.reader
        self._dataset_records = [
            record
            for _, record in evaluation_set.rows_with_maps(map_steps, self.console, most)
            if record.error is None
        ]
        config = self.config({})
        self._maps[_key(config.explain)] = self._dataset_records
        records = _contrast(self._dataset_records, config.explain)
        trial = self.judge(config.regions, records, calibration)
        if not trial.phrases:
            raise InputError(f"none of the {len(trial.parts)} images has a phrase with ground truth")
        if trial.figures[self.by] is None:
            raise ConfigError(
                f"there is no {self.by} with this ground truth and the dataset's settings", key="by"
            )
        return trial

    def measure(self, changes: Changes) -> Trial:
        """Measure changes without a calibration; the rule `fitted` is fitted to the other half of the images."""
        config = self.config(changes)
        records = _contrast(self._maps_of(config), config.explain)
        if config.regions.rule != "fitted":
            return self.judge(config.regions, records)
        rows = {row["sample_id"]: row for row in self.evaluation_set.rows()}
        pairs = [(rows[record.sample.sample_id], record) for record in records]
        halves = (pairs[1::2], pairs[::2])
        cuts = [fit_cut_to_rows(config.regions, half, self.evaluation_set)[0] for half in halves]
        return self.judge(config.regions, records, cuts=cuts)

    def judge(
        self,
        config: RegionsConfig,
        records: Sequence[Record],
        calibration: Calibration | None = None,
        cuts: Sequence[FittedCut | None] = (None,),
    ) -> Trial:
        """Cut regions from maps and judge them. Images take turns with the `cuts`."""
        stages = [RegionsStage(config, calibration, fitted_cut=cut) for cut in cuts]
        values: dict[str, list[list[float]]] = {name: [] for name in FIGURES}
        for number, record in enumerate(records):
            for name, numbers in self._judge_image(stages[number % len(stages)], record).items():
                values[name].append([value for value in numbers if not math.isnan(value)])
        all_values = {name: list(chain.from_iterable(parts)) for name, parts in values.items()}
        means = {
            name: math.fsum(numbers) / len(numbers) if numbers else None
            for name, numbers in all_values.items()
        }
        counts = {count: len(all_values[name]) for count, name in _COUNTED.items()}
        parts = np.array([[math.fsum(numbers), len(numbers)] for numbers in values[self.by]], np.float64)
        return Trial(figures={**means, **counts}, parts=parts.reshape(-1, 2))

    def _judge_image(self, stage: RegionsStage, record: Record) -> dict[str, list[float]]:
        """Return the values of each figure for the regions that a stage cuts from an image's maps.

        Reviews judge the best region of a phrase by its box; boxes agree from an IoU of 0.5 on.
        The region is right if its box agrees with one that people called right, and wrong if
        there are such boxes and it agrees with none of them. It is also wrong if its box agrees
        with one that people called wrong, or if people called the phrase absent. Any other
        region does not count, because nobody knows.
        """
        (row,) = records_to_rows(stage.process([record])).to_pylist()
        values: dict[str, list[float]] = {name: [] for name in FIGURES}
        best = {
            region["phrase"]: region
            for region in sorted(row["annotations"], key=lambda region: region["score"])
        }
        for query in self.evaluation_set.queries(row, record.phrases, stage.maker.surfaces_of(record)):
            right = [float(is_correct) for is_correct in judge_answers(query)]
            values["precision"] += right
            if self.wrong is not None:
                values["agreement"] += right[:1] or [0.0] * (query.target is not None)
            best.pop(query.phrase, None)
            for name in FIGURES[:-2] if query.target is not None else ():
                values[name].append(value_of(name, query))
        for phrase, region in best.items():
            if is_right(region["bbox"], (self.wrong or {}).get((row["sample_id"], phrase), ())):
                values["agreement"].append(0.0)
        return values

    def is_applicable(self, group: str, changes: Changes, before: Changes) -> bool:
        """Return whether a try changes the settings before it, and suits the model's tower and the ground truth."""
        config = self.config(before)
        values = config.model_dump(mode="json")
        explain = config.explain
        if all(values[key.split(".")[0]].get(key.split(".")[1]) == value for key, value in changes.items()):
            return False
        tower = self.model.tower.kind
        conditions = {
            "explainer": changes.get("explain.kind") in kinds_for(tower),
            "sizes": explain.image_size != "keep",
            "depth": tower == "class_token" and explain.affinity != "none",
            "blocks": tower == "class_token" and explain.kind == "grad_eclip",
            "fitted": self.wrong is None,
        }
        return conditions.get(group, True)

    def figure(self, trial: Trial) -> float:
        """Return the figure that decides; 0 without any value."""
        return trial.figures[self.by] or 0.0

    def keep_maps(self, *changes: Changes) -> None:
        """Drop the maps of all other settings."""
        self._maps = {key: self._maps[key] for key in {_key(self.config(part).explain) for part in changes}}

    def _maps_of(self, config: RunConfig) -> list[Record]:
        key = _key(config.explain)
        if key not in self._maps:
            map_config = config.model_copy(
                update={"explain": config.explain.model_copy(update={"contrast": 0.0})}
            )
            steps = build_steps_in_memory(map_config, self.model)
            settings = steps.model_stage.config.model_copy(update={"keep_pixels": True})
            stages = [steps.prepare_stage, ExplainStage(settings, self.model)]
            phrases = {record.sample.sample_id: record.phrases for record in self._dataset_records}
            records = process_input(self._reader, stages, phrases, self.console)
            records_by_name = {record.sample.sample_id: record for record in records}
            self._maps[key] = [records_by_name[record.sample.sample_id] for record in self._dataset_records]
        return self._maps[key]


def _key(config: ExplainerConfig) -> str:
    return json.dumps(config.model_dump(mode="json", exclude={"contrast"}), sort_keys=True)


def _contrast(records: Sequence[Record], config: ExplainerConfig) -> list[Record]:
    return [
        replace(record, heat_maps=tuple(subtract_others(list(record.heat_maps), config.contrast)))
        for record in records
    ]
