"""Figures with 95 % intervals, and statistics of scores.

Intervals are a percentile bootstrap over images: phrases of one image are not independent, so
whole images are drawn. Statistics of scores take scores (n,), right (n,) bool and weights (n,),
>= 0, which the bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import from_json, to_json

from pipeline.dataset.selection import SIZES
from pipeline.logistic import fit_logistic, roc_area
from stages.contract.values import Bools, Floats, Integers

RESAMPLES: Final = 2000

SEED: Final = 0
LEVEL: Final = 0.95  # two-sided confidence level of all intervals

BINS: Final = 15
"""Bins of equal width for the calibration error: Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017."""

THRESHOLDS: Final = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Scores for which the report says how many regions a filter keeps."""

FOLDS: Final = 5  # parts of the images; each is judged by a fit on the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval and the number of values that it comes from; NaN without any."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0


Estimates = dict[str, Estimate]
"""Figures by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeShare:
    """Regions of a size: their share of those of all sizes, and their precision."""

    share: float
    precision: Estimate


@pydantic_dataclass(frozen=True, kw_only=True)
class ScoreFilter:
    """Regions with a score of `score` or more.

    Attributes:
        score: The least score.
        share: Their share of all regions; None without regions.
        precision: The share of these that are right.
        sizes: Name in `SIZES` -> those of this size.
    """

    score: float
    share: Annotated[float | None, Field(serialization_alias="kept")]
    precision: Estimate
    sizes: Mapping[str, SizeShare] = field(default_factory=dict)


def plain_values(result: object) -> Any:
    """Return a result as values of JSON: dataclasses become dictionaries, and NaN becomes None.

    >>> plain_values({"recall": Estimate(value=0.5, n=1)})
    {'recall': {'value': 0.5, 'low': None, 'high': None, 'n': 1}}
    """
    return from_json(to_json(result, inf_nan_mode="null"))


def mean_estimates(
    values: Sequence[Floats], images: Integers, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Return the means of several kinds of values (n,) that belong to images (n,), numbers >= 0.

    All kinds share the resamples: to draw them takes far longer than to use them.
    """
    if images.size == 0:
        return [Estimate()] * len(values)
    _, image_index = np.unique(images, return_inverse=True)
    sums = np.array([np.bincount(image_index, numbers) for numbers in values])
    counts = np.bincount(image_index).astype(np.float64)
    means = np.array([sums @ weights / (counts @ weights) for weights in _draws(counts.size, resamples)])
    return [
        _estimate(float(numbers.mean()), row, numbers.size)
        for numbers, row in zip(values, means.T, strict=True)
    ]


def weighted_estimate(
    statistic: Callable[[Floats], float], images: Integers, resamples: int = RESAMPLES
) -> Estimate:
    """Return a statistic of weights (n,), one per value, with its interval; images (n,): the image of each value."""
    if images.size == 0:
        return Estimate()
    numbers, image_index = np.unique(images, return_inverse=True)
    values = np.array([statistic(weights[image_index]) for weights in _draws(numbers.size, resamples)])
    return _estimate(statistic(np.ones(images.size)), values, images.size)


def sum_estimate(figure: Callable[[Floats], float], sums: Floats, images: Integers) -> Estimate:
    """Return a figure of sums (k,) over images with its interval; sums (n, k) has a row for each image."""
    return weighted_estimate(lambda weights: figure(weights @ sums), images)


def _draws(count: int, resamples: int) -> Iterator[Floats]:
    """Yield how often each of `count` images is drawn, in samples of `count` with replacement."""
    rng = np.random.default_rng(SEED)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _estimate(value: float, draws: Floats, n: int) -> Estimate:
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(value=value, low=low, high=high, n=n)


def mean_figures(values: Mapping[str, Floats], images: Integers) -> Estimates:
    """Return the mean of each kind of values (n,) of images (n,), without NaN.

    Kinds that are NaN throughout are left out.
    """
    names_by_gaps: dict[bytes, list[str]] = {}
    for name, numbers in values.items():
        names_by_gaps.setdefault(np.isnan(numbers).tobytes(), []).append(name)
    estimates: Estimates = {}
    for names in names_by_gaps.values():
        has_value = ~np.isnan(values[names[0]])
        means = mean_estimates([values[name][has_value] for name in names], images[has_value])
        estimates.update(zip(names, means, strict=True))
    return {name: estimates[name] for name in values if estimates[name].n}


def risk_coverage_area(scores: Floats, right: Bools) -> Callable[[Floats], float]:
    """Return a function from weights to the area under the risk-coverage curve (Geifman & El-Yaniv, NeurIPS 2017).

    The area is the share of wrong regions among the kept ones, averaged over the number of kept
    regions in the order of their scores: lower is better. Equal scores count as the average of all
    their orders.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(
        np.append(True, np.diff(scores[order]) != 0)
    )  # the first of each run of equal scores
    is_wrong = ~right[order]

    def area(weights: Floats) -> float:
        mass = weights[order]
        width = np.add.reduceat(mass, starts)
        errors = np.add.reduceat(mass * is_wrong, starts)[width > 0]
        width = width[width > 0]
        coverage = np.cumsum(width)
        if not coverage.size:
            return math.nan
        k0 = coverage - width
        w0 = np.cumsum(errors) - errors
        rate = errors / width
        # integral of (w0 + rate * t) / (k0 + t) over t in 0 .. width
        log = np.log1p(width / np.where(k0 > 0, k0, 1.0))
        inner = rate * width + np.where(k0 > 0, (w0 - rate * k0) * log, 0.0)
        return float(inner.sum() / coverage[-1])

    return area


def debiased_calibration_error(scores: Floats, right: Bools, images: Integers) -> Estimate:
    """Return the root mean square distance between score and hit rate over `BINS` bins of equal mass, 0 .. 1.

    The variance is subtracted from the square of each bin's distance, so that exact scores have 0
    on average: the estimator of Kumar et al., "Verified Uncertainty Calibration", NeurIPS 2019,
    with the variance over images. In resamples chance counts twice, so the variance is subtracted
    twice.
    """
    if images.size == 0:
        return Estimate()
    numbers, image_index = np.unique(images, return_inverse=True)
    bins = np.argsort(np.argsort(scores, kind="stable")) * BINS // scores.size
    cells = image_index * BINS + bins
    gaps, counts = (
        np.bincount(cells, values, numbers.size * BINS).reshape(numbers.size, BINS)
        for values in (scores - right, np.ones(bins.size))
    )
    drawn_gaps, drawn_counts = (
        np.array([weights @ part for weights in _draws(numbers.size, RESAMPLES)]) for part in (gaps, counts)
    )
    resampled_distances = drawn_gaps / np.maximum(drawn_counts, 1.0)
    variance = resampled_distances.var(axis=0)
    mass = counts.sum(axis=0)
    distance = gaps.sum(axis=0) / np.maximum(mass, 1.0)
    squares = np.vstack([distance**2 - variance, resampled_distances**2 - 2 * variance]) @ (
        mass / mass.sum()
    )
    value, *errors = np.sqrt(np.maximum(0.0, squares)).tolist()
    return _estimate(value, np.array(errors), scores.size)


def calibration_error(scores: Floats, right: Bools, weights: Floats) -> float:
    """Return the expected calibration error: mean distance between score and hit rate over `BINS` bins, 0 .. 1.

    Chance counts as error: with few regions it is never 0, and the resampled intervals of small
    errors are too high.
    """
    total = weights.sum()
    if total <= 0:
        return float("nan")
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    score_sums = np.bincount(bins, weights * scores, BINS)
    hit_sums = np.bincount(bins, weights * right, BINS)
    return float(np.abs(score_sums - hit_sums).sum() / total)


def presence_area(scores: Floats, is_present: Bools, images: Integers) -> Estimate:
    """Return the area under the ROC curve of scores (n,) as a detector of presence; equal scores count as half."""
    area = roc_area(scores)
    return weighted_estimate(lambda weights: area(weights * is_present, weights * ~is_present), images)


def share_estimates(is_hit: Bools, groups: Bools, images: Integers) -> list[Estimate]:
    """Return the share of hits (n,) in each of k groups of values, bool (n, k); images (n,): the image of each value.

    All groups share the resamples.
    """
    numbers, image_index = np.unique(images, return_inverse=True)
    sums = np.zeros((numbers.size, 2 * groups.shape[1]))
    np.add.at(sums, image_index, np.hstack([groups & is_hit[:, None], groups]).astype(np.float64))
    draws = np.array(
        [weights @ sums for weights in _draws(numbers.size, RESAMPLES)] if numbers.size else []
    )
    estimates = []
    for place, (hits, count) in enumerate(sums.sum(axis=0).reshape(2, -1).T):
        if not count:
            estimates.append(Estimate())
            continue
        drawn_counts = draws[:, groups.shape[1] + place]
        is_drawn = drawn_counts > 0
        shares = draws[is_drawn, place] / drawn_counts[is_drawn]
        estimates.append(_estimate(hits / count, shares, int(count)))
    return estimates


def measure_thresholds(
    scores: Floats, right: Bools, images: Integers, box_shares: Floats
) -> list[ScoreFilter]:
    """Return what each of `THRESHOLDS` keeps of the regions, how precise that is, and both by size.

    box_shares: The share of the image that the box of each region covers (n,).
    """
    is_above = scores[:, None] >= np.array(THRESHOLDS)
    sizes = np.searchsorted(list(SIZES.values()), box_shares)
    is_of_size = sizes[:, None] == np.arange(len(SIZES))
    groups = np.dstack([is_above, is_above[:, :, None] & is_of_size[:, None, :]])
    estimates = share_estimates(
        right, groups.reshape(len(scores), len(THRESHOLDS) * (1 + len(SIZES))), images
    )
    filters: list[ScoreFilter] = []
    for threshold, is_chosen in zip(THRESHOLDS, is_above.T, strict=True):
        precision, *by_size = estimates[: 1 + len(SIZES)]
        estimates = estimates[1 + len(SIZES) :]
        share = float(is_chosen.mean()) if is_chosen.size else None
        size_shares = {
            name: SizeShare(share=figure.n / max(1, precision.n), precision=figure)
            for name, figure in zip(SIZES, by_size, strict=True)
        }
        filters.append(ScoreFilter(score=threshold, share=share, precision=precision, sizes=size_shares))
    return filters


def squared_error_gain(baseline: Floats, scores: Floats, right: Bools, images: Integers) -> Estimate:
    """Return how far the mean squared error of scores (Brier 1950) falls from `baseline` to `scores`, paired by region.

    The error falls where scores come nearer to the precision, and where they separate right regions
    from wrong ones.

    Args:
        baseline, scores: Scores (n,), 0 .. 1, of the same regions.
        right: Whether each region is right (n,).
        images: The number of each region's image (n,); the interval resamples images.
    """
    return mean_estimates([(baseline - right) ** 2 - (scores - right) ** 2], images)[0]


def predict_out_of_fold(features: Floats, right: Bools, images: Integers) -> Floats:
    """Return the probability (n,) of each region by a fit on the other folds; an image is in one fold."""
    fold = np.unique(images, return_inverse=True)[1] % FOLDS
    probability = np.empty(len(right))
    for number in range(FOLDS):
        in_fold = fold == number
        if in_fold.any():
            probability[in_fold] = fit_logistic(features[~in_fold], right[~in_fold]).probability(
                features[in_fold]
            )
    return probability
