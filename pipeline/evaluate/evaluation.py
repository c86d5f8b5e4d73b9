"""`phrasebox eval`: all figures of a finished dataset against ground truth.

Boxes, masks and scores come from the shards, and so do heat maps if `output.heat_maps` stored
them. Otherwise the maps are computed again from the dataset's own configuration, which gives
equal maps. Then they are brought into the form from which the regions were cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final, Literal

import numpy as np
from rich.console import Console

from phrasebox.pipeline.dataset.selection import SIZES
from phrasebox.pipeline.evaluate.absent_figures import AbsentFigures
from phrasebox.pipeline.evaluate.estimates import (
    Estimate,
    Estimates,
    ScoreFilter,
    debiased_calibration_error,
    mean_figures,
    measure_thresholds,
    plain_values,
    risk_coverage_area,
    weighted_estimate,
)
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, phrases_of
from phrasebox.pipeline.evaluate.foreign_phrases import absent_evaluation
from phrasebox.pipeline.evaluate.matching import Query
from phrasebox.pipeline.evaluate.metrics import (
    METRICS,
    WITHOUT_TEXT,
    judge_answers,
    value_of,
)
from phrasebox.pipeline.evaluate.text_only import TextOnly, fit_halves
from phrasebox.pipeline.evaluate.verdicts import evaluation_verdict
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Floats, Integers, Json, Sides
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.maker import RegionMaker


@dataclass(slots=True, kw_only=True)
class Outcomes:
    """The numbers that queries leave; their heat maps are not stored.

    Attributes:
        has_maps: Whether the queries have heat maps.
        values: Metric -> value for each query with a target, or NaN.
        queries: All queries, without their maps.
        unique_queries: Those of them for which no earlier one of the image has the same text and boxes.
        heat: Mean heat in each region of the latter, 0 .. 1; empty without maps.
    """

    has_maps: bool
    values: dict[str, list[float]] = field(default_factory=dict)
    queries: list[Query] = field(default_factory=list)
    unique_queries: list[Query] = field(default_factory=list)
    heat: list[float] = field(default_factory=list)

    def add(self, queries: Iterable[Query]) -> None:
        """Measure queries and add the numbers."""
        keys = set()
        for query in queries:
            target = query.target
            if target is not None:
                for name, metric in METRICS.items():
                    if self.has_maps or not metric.needs_maps:
                        self.values.setdefault(name, []).append(value_of(name, query))
            self.queries.append(replace(query, heat=None, other_boxes=(), text_only=None))
            key = (query.phrase, None if target is None else (target.phrase, target.boxes_xywh_px))
            if key in keys:
                continue
            keys.add(key)
            self.unique_queries.append(self.queries[-1])
            if self.has_maps:
                heat = query.heat
                self.heat += [
                    0.0 if heat is None else heat.mean_inside(answer.mask) for answer in query.answers
                ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The numbers of what an evaluation judges; a target among no phrase of its row counts as missed."""

    images: int
    targets: int
    targets_not_among_phrases: int
    absent_phrases: int
    regions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a dataset's regions and maps.

    Captions repeat phrases. Figures of scores count a region once for the same text and boxes
    of an image.

    Attributes:
        counts: What was judged.
        metrics: Mean of each metric, and "NAME_above_text" for `WITHOUT_TEXT`; without those
            that have no value.
        groups: Kind of group -> member -> its metrics.
        scores: Area under the risk-coverage curve of regions that are ranked by score,
            similarity or mean heat.
        calibration_error: Without what chance adds.
        thresholds: Regions from several scores on, also by the size of their boxes.
        true_sizes: Name in `SIZES` -> share of the boxes of the ground truth.
    """

    counts: Counts
    metrics: Estimates
    groups: Mapping[str, Mapping[str, Estimates]]
    scores: Estimates
    calibration_error: Estimate
    thresholds: Sequence[ScoreFilter]
    true_sizes: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `phrasebox eval` says of a dataset.

    Attributes:
        dataset: Path of the dataset.
        truth: Path of the ground truth.
        matched: How many images were matched, and how.
        maps: Whether the heat maps are stored ones or were computed again; None if they were
            not measured.
        rule: How maps were cut.
        figures: The figures.
        absent: Figures of absent phrases, if these were asked for.
        config: Sections model, explain, regions and source of the configuration.
    """

    dataset: str
    truth: str
    matched: Mapping[str, int]
    maps: Literal["stored", "computed"] | None
    rule: str
    figures: Figures
    absent: AbsentFigures | None
    config: Json

    @property
    def verdict(self) -> str:
        """Whether to use the regions, and from which score on."""
        return evaluation_verdict(
            self.figures.thresholds, self.figures.metrics.get("box_recall_above_text")
        )

    def to_json(self) -> Json:
        """Return all parts as values of JSON, in one dictionary."""
        values = plain_values(self)
        figures = values.pop("figures")
        absent = values.pop("absent") or {}
        return {**values, **figures, **absent, "verdict": self.verdict}


Part = Literal["maps", "absent"]
"""What is measured beside regions: heat maps, and how well phrases of other images are recognised
as absent."""

DEFAULT_PARTS: Final[tuple[Part, ...]] = ("maps",)


def evaluate_dataset(
    evaluation_set: EvaluationSet,
    console: Console,
    parts: Collection[Part] = DEFAULT_PARTS,
    text_only: TextOnly | None = None,
) -> Evaluation:
    """Evaluate a dataset.

    Args:
        evaluation_set: The dataset and its ground truth.
        console: Shows the progress.
        parts: What is measured beside regions.
        text_only: The usual places of objects, by default fitted to one half of the images for
            the other half.

    Raises:
        InputError: Rows and ground truth do not fit together, or the input cannot be read.
        ConfigError: A setting cannot be used, or the model is not the dataset's.
    """
    config = evaluation_set.finished_config()
    has_maps = "maps" in parts and evaluation_set.is_of_heat_maps  # other sources of regions have none
    outcomes = measure_rows(evaluation_set, config.regions if has_maps else None, console, text_only)
    if not outcomes.values:
        images = len(evaluation_set.matches.images)
        raise InputError(f"none of the {images} images has a phrase that {evaluation_set.truth_path} knows")
    return Evaluation(
        dataset=str(evaluation_set.dataset.path),
        truth=str(evaluation_set.truth_path),
        matched=evaluation_set.matches.counts,
        maps=("stored" if evaluation_set.has_maps else "computed") if has_maps else None,
        rule=evaluation_set.dataset.manifest["config"]["regions"]["rule"],
        figures=report_figures(outcomes),
        absent=absent_evaluation(evaluation_set, console) if "absent" in parts else None,
        config=config.model_dump(mode="json", include={"model", "explain", "regions", "source"}),
    )


def measure_rows(
    evaluation_set: EvaluationSet,
    regions: RegionsConfig | None,
    console: Console,
    text_only: TextOnly | None,
) -> Outcomes:
    """Measure the queries of all rows; regions: how maps become regions, None to leave the maps out."""
    outcomes = Outcomes(has_maps=regions is not None)
    if regions is None:
        rows = (
            (evaluation_set.queries(row, phrases_of(row["annotations"])), row)
            for row in evaluation_set.rows()
        )
    else:
        maker = RegionMaker(regions)
        steps = evaluation_set.steps(pixels=regions.upsample != "linear")
        rows = (
            (evaluation_set.queries(row, record.phrases, maker.surfaces_of(record)), row)
            for row, record in evaluation_set.rows_with_maps(steps, console)
        )
    usual_places = fit_halves(evaluation_set.matches.images) if text_only is None else {}
    for queries, row in rows:
        place = usual_places.get(row["file_name"], text_only)
        outcomes.add(replace(query, text_only=place) for query in queries)
    return outcomes


def report_figures(outcomes: Outcomes) -> Figures:
    """Return all figures of the outcomes."""
    queries = outcomes.queries
    targets = [(query, query.target) for query in queries if query.target is not None]
    images = np.array([query.image for query, _ in targets], np.int64)
    values = {name: np.array(numbers, np.float64) for name, numbers in outcomes.values.items()}
    for name, baseline in WITHOUT_TEXT.items():
        if name in values:
            values[f"{name}_above_text"] = values[name] - values[baseline]
    pairs = [(query, answer) for query in outcomes.unique_queries for answer in query.answers]
    answers = [answer for _, answer in pairs]
    owners = np.array([query.image for query, _ in pairs], np.int64)
    box_shares = [_box_share(answer.box_xywh_px, query.size_hw) for query, answer in pairs]
    right = np.array(list(chain.from_iterable(map(judge_answers, outcomes.unique_queries))), np.bool_)
    rankings = {name: [getattr(answer, name) for answer in answers] for name in ("score", "similarity")}
    if len(outcomes.heat) == len(answers):
        rankings["mean_heat"] = outcomes.heat
    scores = np.array(rankings["score"], np.float64)
    return Figures(
        counts=Counts(
            images=len({query.image for query in queries}),
            targets=len(targets),
            targets_not_among_phrases=sum(query.phrase is None for query, _ in targets),
            absent_phrases=len(queries) - len(targets),
            regions=len(answers),
        ),
        metrics=mean_figures(values, images),
        groups=_group_figures([target.groups for _, target in targets], values, images),
        scores={
            name: weighted_estimate(risk_coverage_area(np.array(ranking, np.float64), right), owners)
            for name, ranking in rankings.items()
        },
        calibration_error=debiased_calibration_error(scores, right, owners),
        thresholds=measure_thresholds(scores, right, owners, np.array(box_shares, np.float64)),
        true_sizes=_true_sizes(outcomes.unique_queries),
    )


def _box_share(box_xywh_px: Box, size_hw: Sides) -> float:
    return box_xywh_px[2] * box_xywh_px[3] / (size_hw[0] * size_hw[1])


def _true_sizes(queries: Sequence[Query]) -> dict[str, float]:
    """Return the share of the different boxes of targets by size."""
    boxes = {
        (query.image, box): _box_share(box, query.size_hw)
        for query in queries
        if query.target is not None
        for box in query.target.boxes_xywh_px
    }
    places = np.searchsorted(list(SIZES.values()), list(boxes.values()))
    counts = np.bincount(places, minlength=len(SIZES)) / max(1, len(boxes))
    return dict(zip(SIZES, counts.tolist(), strict=True))


def _group_figures(
    groups: Sequence[Mapping[str, str]], values: Mapping[str, Floats], images: Integers
) -> dict[str, dict[str, Estimates]]:
    """Return kind of group -> member -> metrics of the targets that belong to it, in order."""
    figures: dict[str, dict[str, Estimates]] = {}
    for name in sorted({name for group in groups for name in group}):
        members = np.array([group.get(name, "") for group in groups])
        figures[name] = {
            str(member): mean_figures(
                {key: numbers[members == member] for key, numbers in values.items()},
                images[members == member],
            )
            for member in np.unique(members)
            if member
        }
    return figures
