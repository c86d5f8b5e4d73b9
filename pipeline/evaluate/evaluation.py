"""`phrasebox eval`: all figures of a finished dataset against ground truth, as plain values.

Boxes, masks and scores are those of the shards, and so are heat maps where `output.heat_maps` stored them. Otherwise
the maps are computed again from the dataset's own configuration, which gives the same ones. Either way they are brought
into the form that the regions were cut from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.evaluate.estimates import (
    calibration_error,
    debiased_calibration_error,
    filtered,
    means_where_known,
    of_totals,
    risk_coverage_area,
    weighted_estimate,
)
from pipeline.evaluate.judged import JudgedDataset, judged_dataset, phrases_of
from pipeline.evaluate.matching import Query
from pipeline.evaluate.metrics import (
    METRICS,
    WITHOUT_TEXT,
    Grouping,
    b_cubed,
    correct,
    grouping_of,
    link_counts,
    pair_f1,
    value_of,
)
from pipeline.evaluate.presence import absent_evaluation
from pipeline.evaluate.text_only import TextOnly, of_other_half
from pipeline.evaluate.verdicts import evaluation_verdict
from stages.contract.errors import InputError
from stages.regions.config import RegionsConfig
from stages.regions.maker import RegionMaker
from stages.shared.storage import place_of
from stages.sources import HEAT_MAPS


@dataclass(slots=True)
class Outcomes:
    """The numbers that are kept of queries; their heat maps are not kept."""

    values: dict[str, list[float]] = field(default_factory=dict)  # metric -> of each query with a target, or NaN
    queries: list[Query] = field(default_factory=list)  # all, without their maps
    is_first: list[bool] = field(default_factory=list)  # not the same text for the same boxes of an image again
    heat: list[float] = field(default_factory=list)  # mean in each region of the first ones, 0 .. 1; none without maps
    groupings: list[Grouping] = field(default_factory=list)  # of each image

    def add(self, queries: Iterable[Query], *, maps: bool) -> None:
        """Measure queries and keep the numbers. maps: whether the queries have heat maps."""
        mean_heats: dict[tuple[int, str | None], list[float]] = {}  # targets of several captions share a phrase
        seen = set()
        for query in queries:
            boxes = None if query.target is None else (query.target.phrase, query.target.boxes_xywh_px)
            self.is_first.append((query.phrase, boxes) not in seen)
            seen.add((query.phrase, boxes))
            if query.target is not None:
                for name, metric in METRICS.items():
                    if maps or not metric.needs_maps:
                        self.values.setdefault(name, []).append(value_of(name, query))
            if maps and self.is_first[-1]:
                key, heat = (query.image, query.phrase), query.heat
                if key not in mean_heats:
                    mean_heats[key] = [0.0 if heat is None else heat.mean_inside(each.mask) for each in query.answers]
                self.heat.extend(mean_heats[key])
            self.queries.append(replace(query, heat=None, others=(), text_only=None))


def evaluation_of(
    dataset: Path,
    truth_path: Path,
    console: Console,
    settings: Sequence[str] = (),
    *,
    maps: bool = True,
    resized: bool = False,
    absent: bool = False,
    text_only: TextOnly | None = None,
) -> dict[str, Any]:
    """Evaluate a dataset: `dataset`, `truth`, `settings` and `resized` as for `judged_dataset`.

    `maps`: whether to measure the heat maps, too; `absent`: whether to ask for absent phrases, too; `text_only`: the
    usual places of things, by default for each half of the images those of the other half.

    Returns:
        The figures of `report`; `dataset`, `truth`, `matched`, `rule`, `config`; `maps`: whether the heat maps are
        "stored" ones, were "computed" again, or None, not measured; and `verdict`, see `evaluation_verdict`.

    Raises:
        InputError: The dataset or the ground truth cannot be read, or they do not fit together.
        ConfigError: A setting cannot be used, or the model is not the dataset's.
    """
    judged = judged_dataset(dataset, truth_path, settings, resized=resized)
    config = judged.config(explains=False)
    maps = maps and config.source.kind == HEAT_MAPS  # other sources of regions have none
    outcomes = outcomes_of(judged, config.regions if maps else None, console, text_only)
    if not outcomes.values:
        raise InputError(f"none of the {len(judged.matched.images)} images has a phrase that {truth_path} knows")
    figures = report(outcomes)
    return {
        "dataset": str(place_of(dataset)),
        "truth": str(truth_path),
        "matched": judged.matched.counts,
        "maps": ("stored" if judged.has_maps else "computed") if maps else None,
        "rule": config.regions.rule,
        **figures,
        **(absent_evaluation(judged, console) if absent else {}),
        "config": config.model_dump(mode="json", include={"model", "explain", "regions", "source"}),
        "verdict": evaluation_verdict(figures),
    }


def outcomes_of(
    judged: JudgedDataset, regions: RegionsConfig | None, console: Console, text_only: TextOnly | None
) -> Outcomes:
    """Return the outcomes of all rows; regions: how maps become regions, None to leave the maps out."""
    outcomes = Outcomes()
    if regions is None:
        rows = ((judged.queries(row, phrases_of(row["annotations"])), row) for row in judged.rows())
    else:
        maker = RegionMaker(regions)
        mapped = judged.mapped(judged.graph(pixels=regions.upsample != "linear"), console)
        rows = ((judged.queries(row, record.phrases, maker.surfaces_of(record)), row) for row, record in mapped)
    usual = of_other_half(judged.matched.images) if text_only is None else {}
    for queries, row in rows:
        known = usual.get(row["file_name"], text_only)
        outcomes.add((replace(query, text_only=known) for query in queries), maps=regions is not None)
        outcomes.groupings.append(grouping_of(row["id"], row, judged.image_of(row)))
    return outcomes


def report(outcomes: Outcomes) -> dict[str, Any]:
    """Return all figures as plain values: counts, metrics, groups, scores, calibration_error, thresholds.

    Captions repeat phrases. Figures of scores count a region once for the same text and boxes of an image.

    Every figure is {value, low, high, n}, see `Estimate`. Where the dataset and the ground truth link phrases there are
    also group_f1, whose n counts the pairs that the ground truth links, and group_b_cubed, whose n counts phrases.
    """
    queries = outcomes.queries
    targets = [(query, query.target) for query in queries if query.target is not None]
    images = np.array([query.image for query, _ in targets], np.int64)
    values = {name: np.array(numbers, np.float64) for name, numbers in outcomes.values.items()}
    first = [query for query, is_first in zip(queries, outcomes.is_first, strict=True) if is_first]
    for name, other in WITHOUT_TEXT.items():
        if name in values:
            values[f"{name}_above_text"] = values[name] - values[other]
    answers = [answer for query in first for answer in query.answers]
    owners = np.array([query.image for query in first for _ in query.answers], np.int64)
    right = np.array([one for query in first for one in correct(query)], np.bool_)
    ranks = {"score": [answer.score for answer in answers], "similarity": [answer.similarity for answer in answers]}
    if len(outcomes.heat) == len(answers):
        ranks["mean_heat"] = outcomes.heat
    scores = np.array(ranks["score"], np.float64)
    return {
        "counts": {
            "images": len({query.image for query in queries}),
            "targets": len(targets),
            "targets_not_among_phrases": sum(query.phrase is None for query, _ in targets),
            "absent_phrases": len(queries) - len(targets),
            "regions": len(answers),
        },
        "metrics": means_where_known(values, images),
        "groups": {
            name: {
                member: means_where_known({key: each[chosen] for key, each in values.items()}, images[chosen])
                for member, chosen in members.items()
            }
            for name, members in _members([target.groups for _, target in targets]).items()
        },
        **_linked(outcomes.groupings),
        "scores": {
            name: weighted_estimate(risk_coverage_area(np.array(each, np.float64), right), owners).plain()
            for name, each in ranks.items()
        },
        "calibration_error": debiased_calibration_error(scores, right, owners).plain(),
        "calibration_error_plain": weighted_estimate(partial(calibration_error, scores, right), owners).plain(),
        "thresholds": filtered(scores, right, owners),
    }


def _members(groups: Sequence[Mapping[str, str]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Group -> member -> the targets that belong to it, members in order."""
    chosen = {}
    for name in sorted({name for group in groups for name in group}):
        members = np.array([group.get(name, "") for group in groups])
        chosen[name] = {str(member): members == member for member in np.unique(members) if member}
    return chosen


def _linked(groupings: Sequence[Grouping]) -> dict[str, Any]:
    """F1 of pairs and B-cubed; nothing where the dataset or the ground truth does not link phrases."""
    groupings = [each for each in groupings if each.links]
    counts = link_counts(groupings)
    images = np.array([each.image for each in groupings], np.int64)
    figures = {}
    for name, figure, column in (("group_f1", pair_f1, 2), ("group_b_cubed", b_cubed, 5)):
        n = int(counts[:, column].sum())
        if n:
            estimate = weighted_estimate(partial(of_totals, figure, counts), images)
            figures[name] = replace(estimate, n=n).plain()
    return figures
