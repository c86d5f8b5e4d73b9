"""The figures of an evaluation with their intervals: plain values that go into JSON and into a table.

Intervals are a percentile bootstrap over images: phrases of one image are not independent, so whole images are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.grouping import Grouping, b_cubed, counts_of, pair_f1
from pipeline.evaluate.matching import Query
from pipeline.evaluate.metrics import METRICS, correct
from pipeline.evaluate.scores import (
    Floats,
    calibration_error,
    coco_matches,
    filtered,
    risk_coverage_area,
)

RESAMPLES: Final = 1000
SCORE_RESAMPLES: Final = 200
"""Resamples of the figures that sort all regions each time: risk-coverage, calibration, AP."""

SEED: Final = 0
LEVEL: Final = 0.95
"""Two-sided confidence level of all intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval and the number of values that it comes from; NaN without any."""

    value: float
    low: float
    high: float
    n: int


_NO_ESTIMATE: Final = Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)


def mean_estimates(values: Sequence[Floats], images: NDArray[np.int64], resamples: int = RESAMPLES) -> list[Estimate]:
    """The means of several kinds of values (n,) that belong to images (n,), numbers >= 0.

    All kinds share the resamples: to draw them takes far longer than to use them.
    """
    if images.size == 0:
        return [_NO_ESTIMATE] * len(values)
    _, owner = np.unique(images, return_inverse=True)
    sums = [np.bincount(owner, each) for each in values]
    counts = np.bincount(owner).astype(np.float64)
    rng = np.random.default_rng(SEED)
    means = np.empty((len(sums), resamples))
    for i in range(resamples):
        drawn = _draw(rng, counts.size)
        total = drawn @ counts
        means[:, i] = [(drawn @ each) / total for each in sums]
    return [_estimate(float(each.mean()), row, each.size) for each, row in zip(values, means, strict=True)]


def weighted_estimate(
    statistic: Callable[[Floats], float], images: NDArray[np.int64], resamples: int = SCORE_RESAMPLES
) -> Estimate:
    """Any statistic of weights (n,), one per value; images (n,) says to which image a value belongs."""
    if images.size == 0:
        return _NO_ESTIMATE
    names, owner = np.unique(images, return_inverse=True)
    rng = np.random.default_rng(SEED)
    drawn = np.array([statistic(_draw(rng, names.size)[owner]) for _ in range(resamples)])
    return _estimate(statistic(np.ones(images.size)), drawn, images.size)


def _draw(rng: np.random.Generator, count: int) -> Floats:
    """How often each of `count` images is drawn in a sample of `count` with replacement."""
    return np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _estimate(value: float, drawn: Floats, n: int) -> Estimate:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(value=value, low=low, high=high, n=n)


@dataclass(slots=True)
class Outcomes:
    """The numbers that are kept of queries; their heat maps are not kept.

    Attributes:
        values: Metric -> one number per query with a target, NaN where it is not defined.
        images: Image of each query with a target.
        groups: Group -> member, for each query with a target.
        queries: All queries, without their maps.
        heat: Mean heat inside each region, by query and answer, 0 .. 1 of the map's highest; empty without maps.
        missed: Queries with a target whose phrase the row does not have.
        groupings: Which phrases of each image are linked, and which the truth links.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)
    groups: list[Mapping[str, str]] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    heat: list[float] = field(default_factory=list)
    missed: int = 0
    groupings: list[Grouping] = field(default_factory=list)

    def add(self, queries: Iterable[Query], *, maps: bool) -> None:
        """Measure queries and keep the numbers. maps: whether the queries have heat maps."""
        mean_heats: dict[tuple[int, str | None], list[float]] = {}  # targets of several captions share a phrase
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
                key = (query.image, query.phrase)
                if key not in mean_heats:
                    mean_heats[key] = _mean_heat(query)
                self.heat.extend(mean_heats[key])
            self.queries.append(replace(query, heat=None, plain_heat=None))


def _mean_heat(query: Query) -> list[float]:
    """Mean heat on the mask of each answer; the map's highest value is 1."""
    return [0.0 if query.heat is None else query.heat.mean_inside(answer.mask) for answer in query.answers]


def report(outcomes: Outcomes) -> dict[str, Any]:
    """All figures as plain values: counts, metrics, groups, coco_ap, scores, calibration_error, thresholds.

    Every figure is {value, low, high, n}, see `Estimate`. NaN becomes None. Where the dataset and the truth link
    phrases there are also group_f1, whose n counts the pairs that the truth links, and group_b_cubed, whose n counts
    phrases.
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
        **_linked(outcomes.groupings),
        "coco_ap": _coco(outcomes.queries),
        "scores": {
            name: _plain(weighted_estimate(partial(risk_coverage_area, np.array(values, np.float64), right), owners))
            for name, values in ranks.items()
        },
        "calibration_error": _plain(weighted_estimate(partial(calibration_error, scores, right), owners)),
        "thresholds": filtered(scores, right),
    }


def _linked(groupings: Sequence[Grouping]) -> dict[str, Any]:
    """F1 of pairs and B-cubed; nothing where the dataset or the truth does not link phrases."""
    groupings = [each for each in groupings if each.links]
    counts = counts_of(groupings)
    images = np.array([each.image for each in groupings], np.int64)
    figures = {}
    for name, figure, column in (("group_f1", pair_f1, 2), ("group_b_cubed", b_cubed, 5)):
        n = int(counts[:, column].sum())
        if n:
            estimate = weighted_estimate(partial(_of_totals, figure, counts), images, RESAMPLES)
            figures[name] = _plain(replace(estimate, n=n))
    return figures


def _of_totals(figure: Callable[[Floats], float], counts: Floats, weights: Floats) -> float:
    return figure(weights @ counts)


def _means(outcomes: Outcomes, images: NDArray[np.int64], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The mean of every metric over the chosen targets; metrics that are defined for none of them are left out."""
    values = {name: np.array(numbers, np.float64)[chosen] for name, numbers in outcomes.values.items()}
    return means_where_known(values, images[chosen])


def means_where_known(values: Mapping[str, Floats], images: NDArray[np.int64]) -> dict[str, Any]:
    """The mean of each kind of values (n,) that belong to images (n,), over those that are not NaN, as plain values.

    Kinds that are NaN throughout are left out.
    """
    together: dict[bytes, list[str]] = {}  # kinds by the values that they have
    for name, numbers in values.items():
        together.setdefault(np.isnan(numbers).tobytes(), []).append(name)
    estimates: dict[str, Estimate] = {}
    for names in together.values():
        known = ~np.isnan(values[names[0]])
        found = mean_estimates([values[name][known] for name in names], images[known])
        estimates.update(zip(names, found, strict=True))
    return {name: _plain(estimates[name]) for name in values if estimates[name].n}


def _members(groups: Sequence[Mapping[str, str]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Group -> member -> which targets belong to it, members in order."""
    chosen = {}
    for name in sorted({name for group in groups for name in group}):
        members = np.array([group.get(name, "") for group in groups])
        chosen[name] = {str(member): members == member for member in np.unique(members) if member}
    return chosen


def _coco(queries: Sequence[Query]) -> dict[str, Any]:
    """COCO's AP of boxes, and of masks where every target has one."""
    kinds: dict[str, Literal["bbox", "segm"]] = {"box": "bbox"}
    if all(query.target is None or query.target.mask is not None for query in queries):
        kinds["mask"] = "segm"
    images = np.array([query.image for query in queries], np.int64)
    figures: dict[str, Any] = {}
    for name, kind in kinds.items():
        matches = coco_matches(queries, kind)
        if matches is not None:
            ap = _plain(weighted_estimate(matches.average_precision, images))
            figures[name] = {"ap": ap, "ap50": matches.ap50, "ap75": matches.ap75}
    return figures


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(estimate).items()
    }
