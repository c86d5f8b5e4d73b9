"""The figures of an evaluation: plain values that go into JSON and into a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.masks import decode_mask
from stages.dataset.evaluate.bootstrap import Estimate, mean_estimate, weighted_estimate
from stages.dataset.evaluate.coco_ap import coco_matches
from stages.dataset.evaluate.matching import Query
from stages.dataset.evaluate.metrics import METRICS, correct
from stages.dataset.evaluate.scores import THRESHOLDS, calibration_error, kept_and_precision, risk_coverage_area

SCORE_RESAMPLES: Final = 200
"""Resamples of the figures that sort all regions each time: risk-coverage, calibration, AP."""


@dataclass(slots=True)
class Outcomes:
    """What is kept of queries: numbers, and of the heat maps nothing.

    values   metric -> one number per query with a target, NaN where not defined
    images   image of each query with a target
    groups   group -> member of each query with a target, "" where it has none
    queries  all queries, their maps taken away
    heat     mean heat inside each region, by query and answer, in 0 .. 1 of the map's highest; only with maps
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)
    groups: list[Mapping[str, str]] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    heat: list[float] = field(default_factory=list)
    missed: int = 0

    def add(self, queries: Iterable[Query], *, maps: bool) -> None:
        """Measure queries and keep the numbers."""
        for query in queries:
            if query.target is not None:
                self.missed += query.phrase is None
                self.images.append(query.image)
                self.groups.append(query.target.groups)
                for name, metric in METRICS.items():
                    if maps or not metric.needs_maps:
                        value = metric.value(query)
                        self.values.setdefault(name, []).append(math.nan if value is None else value)
            if maps:
                self.heat.extend(_mean_heat(query))
            self.queries.append(
                Query(
                    image=query.image,
                    size_hw=query.size_hw,
                    phrase=query.phrase,
                    target=query.target,
                    answers=query.answers,
                )
            )


def report(outcomes: Outcomes) -> dict[str, Any]:
    """All figures as plain values: counts, metrics, groups, coco_ap, scores, thresholds.

    Every figure is {value, low, high, n}; see `bootstrap.Estimate`. NaN is None.
    """
    images = np.array(outcomes.images, np.int64)
    everything = np.ones(images.size, np.bool_)
    answers = [answer for query in outcomes.queries for answer in query.answers]
    owners = np.array([query.image for query in outcomes.queries for _ in query.answers], np.int64)
    right = np.array([one for query in outcomes.queries for one in correct(query)], np.bool_)
    ranks = {"score": [answer.score for answer in answers], "similarity": [answer.similarity for answer in answers]}
    if len(outcomes.heat) == len(answers):
        ranks["mean_heat"] = outcomes.heat
    scores = np.array(ranks["score"], np.float64)
    return {
        "counts": {
            "images": len({query.image for query in outcomes.queries}),
            "targets": len(outcomes.images),
            "targets_not_among_phrases": outcomes.missed,
            "absent_phrases": sum(query.target is None for query in outcomes.queries),
            "regions": len(answers),
        },
        "metrics": _means(outcomes, images, everything),
        "groups": {
            name: {member: _means(outcomes, images, chosen) for member, chosen in members.items()}
            for name, members in _members(outcomes.groups).items()
        },
        "coco_ap": _coco(outcomes.queries),
        "scores": {
            name: _plain(_estimate(risk_coverage_area, np.array(values, np.float64), right, owners))
            for name, values in ranks.items()
        },
        "calibration_error": _plain(_estimate(calibration_error, scores, right, owners)),
        "thresholds": [
            {"score": threshold, **dict(zip(("kept", "precision"), _numbers(scores, right, threshold), strict=True))}
            for threshold in THRESHOLDS
        ],
    }


def _numbers(scores: NDArray[np.float64], right: NDArray[np.bool_], threshold: float) -> list[float | None]:
    if scores.size == 0:
        return [None, None]
    return [None if math.isnan(value) else value for value in kept_and_precision(scores, right, threshold)]


def _means(outcomes: Outcomes, images: NDArray[np.int64], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    figures = {}
    for name, numbers in outcomes.values.items():
        values = np.array(numbers, np.float64)
        use = chosen & ~np.isnan(values)
        if use.any():
            figures[name] = _plain(mean_estimate(values[use], images[use]))
    return figures


def _members(groups: Sequence[Mapping[str, str]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Group -> member -> which targets belong to it, members in order."""
    names = sorted({name for group in groups for name in group})
    chosen = {}
    for name in names:
        members = np.array([group.get(name, "") for group in groups])
        chosen[name] = {str(member): members == member for member in np.unique(members) if member}
    return chosen


def _coco(queries: Sequence[Query]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    masks_known = all(query.target is None or query.target.mask is not None for query in queries)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        matches = coco_matches(queries, "bbox" if kind == "bbox" else "segm") if name == "box" or masks_known else None
        if matches is None:
            continue
        images = np.array([query.image for query in queries], np.int64)
        ap = weighted_estimate(matches.average_precision, images, SCORE_RESAMPLES)
        figures[name] = {"ap": _plain(ap), "ap50": matches.stats[1], "ap75": matches.stats[2]}
    return figures


def _estimate(
    statistic: Any, scores: NDArray[np.float64], right: NDArray[np.bool_], images: NDArray[np.int64]
) -> Estimate:
    return weighted_estimate(partial(statistic, scores, right), images, SCORE_RESAMPLES)


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(estimate).items()
    }


def _mean_heat(query: Query) -> list[float]:
    """Mean heat on each answer's mask; the map's highest value is 1."""
    heat = query.heat_px
    top = 0.0 if heat is None else float(heat.max())
    if heat is None or top <= 0:
        return [0.0] * len(query.answers)
    return [float(heat[decode_mask(answer.mask)].mean()) / top for answer in query.answers]
