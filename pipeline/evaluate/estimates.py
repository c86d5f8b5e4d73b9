"""Figures with 95 % intervals, and statistics of scores.

Intervals are a percentile bootstrap over images: phrases of one image are not independent, so whole images are drawn.
Statistics of scores take scores (n,), right (n,) bool and weights (n,), >= 0, which the bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.logistic import fit_logistic

Floats = NDArray[np.float64]

RESAMPLES: Final = 2000

SEED: Final = 0
LEVEL: Final = 0.95  # two-sided confidence level of all intervals

BINS: Final = 15
"""Bins of equal width for the calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""

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

    def plain(self) -> dict[str, Any]:
        """Plain values, NaN as None."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}


def mean_estimates(values: Sequence[Floats], images: NDArray[np.int64], resamples: int = RESAMPLES) -> list[Estimate]:
    """Return the means of several kinds of values (n,) that belong to images (n,), numbers >= 0.

    All kinds share the resamples: to draw them takes far longer than to use them.
    """
    if images.size == 0:
        return [Estimate()] * len(values)
    _, owner = np.unique(images, return_inverse=True)
    sums = np.array([np.bincount(owner, each) for each in values])
    counts = np.bincount(owner).astype(np.float64)
    means = np.array([sums @ drawn / (counts @ drawn) for drawn in _draws(counts.size, resamples)])
    return [_estimate(float(each.mean()), row, each.size) for each, row in zip(values, means.T, strict=True)]


def wilson(share: float, n: float) -> Estimate:
    """Return a share of n independent cases with Wilson's interval; n may be an effective number."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half), n=round(n))


def weighted_estimate(
    statistic: Callable[[Floats], float], images: NDArray[np.int64], resamples: int = RESAMPLES
) -> Estimate:
    """Any statistic of weights (n,), one per value; images (n,) says to which image a value belongs."""
    if images.size == 0:
        return Estimate()
    names, owner = np.unique(images, return_inverse=True)
    drawn = np.array([statistic(drawn[owner]) for drawn in _draws(names.size, resamples)])
    return _estimate(statistic(np.ones(images.size)), drawn, images.size)


def of_totals(figure: Callable[[Floats], float], sums: Floats, weights: Floats) -> float:
    """Return a figure of the sums (images, k) of images with weights (images,)."""
    return figure(weights @ sums)


def _draws(count: int, resamples: int) -> Iterator[Floats]:
    """How often each of `count` images is drawn in samples of `count` with replacement."""
    rng = np.random.default_rng(SEED)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _estimate(value: float, drawn: Floats, n: int) -> Estimate:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(value=value, low=low, high=high, n=n)


def means_where_known(values: Mapping[str, Floats], images: NDArray[np.int64]) -> dict[str, Any]:
    """The mean of each kind of values (n,) that belong to images (n,), over those that are not NaN, as plain values.

    Kinds that are NaN throughout are left out.
    """
    together: dict[bytes, list[str]] = {}  # kinds that have values for the same questions
    for name, numbers in values.items():
        together.setdefault(np.isnan(numbers).tobytes(), []).append(name)
    estimates: dict[str, Estimate] = {}
    for names in together.values():
        known = ~np.isnan(values[names[0]])
        found = mean_estimates([values[name][known] for name in names], images[known])
        estimates.update(zip(names, found, strict=True))
    return {name: estimates[name].plain() for name in values if estimates[name].n}


def risk_coverage_area(scores: Floats, right: NDArray[np.bool_]) -> Callable[[Floats], float]:
    """Area under the risk-coverage curve (Geifman & El-Yaniv, NeurIPS 2017), for any weights: lower is better.

    This is the share of wrong regions among those kept, averaged over how many are kept in the order of their scores.
    Equal scores count as the average of all their orders.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # the first of each run of equal scores
    is_wrong = ~right[order]

    def area(weights: Floats) -> float:
        own = weights[order]
        width, lost = (np.add.reduceat(each, starts) for each in (own, own * is_wrong))
        width, lost = width[width > 0], lost[width > 0]
        kept = np.cumsum(width)
        if not kept.size:
            return math.nan
        k0, w0, rate = kept - width, np.cumsum(lost) - lost, lost / width
        # integral of (w0 + rate * t) / (k0 + t) over t in 0 .. width
        log = np.log1p(width / np.where(k0 > 0, k0, 1.0))
        inner = rate * width + np.where(k0 > 0, (w0 - rate * k0) * log, 0.0)
        return float(inner.sum() / kept[-1])

    return area


def debiased_calibration_error(scores: Floats, right: NDArray[np.bool_], images: NDArray[np.int64]) -> Estimate:
    """Root mean square distance between score and hit rate over `BINS` bins of equal mass, without chance, 0 .. 1.

    From the square of each bin's distance its variance is taken away, so that exact scores have 0 on average: the
    estimator of Kumar et al., "Verified Uncertainty Calibration", NeurIPS 2019, with the variance over images. Those of
    the resamples, in which chance counts twice, are rid of both parts.
    """
    if images.size == 0:
        return Estimate()
    names, owner = np.unique(images, return_inverse=True)
    bins = np.argsort(np.argsort(scores, kind="stable")) * BINS // scores.size
    cells, shape = owner * BINS + bins, (names.size, BINS)
    parts = [
        np.bincount(cells, each, names.size * BINS).reshape(shape) for each in (scores - right, np.ones(bins.size))
    ]
    gaps, counts = (np.array([drawn @ part for drawn in _draws(names.size, RESAMPLES)]) for part in parts)
    drawn = gaps / np.maximum(counts, 1.0)
    variance, mass = drawn.var(axis=0), parts[1].sum(axis=0)
    own = parts[0].sum(axis=0) / np.maximum(mass, 1.0)
    squares = np.vstack([own**2 - variance, drawn**2 - 2 * variance]) @ (mass / mass.sum())
    value, *resampled = np.sqrt(np.maximum(0.0, squares)).tolist()
    return _estimate(value, np.array(resampled), scores.size)


def calibration_error(scores: Floats, right: NDArray[np.bool_], weights: Floats) -> float:
    """Expected calibration error: mean distance between score and hit rate over `BINS` bins, 0 .. 1.

    Chance counts as error: with few regions it is never 0, and the resampled intervals of small errors are too high.
    """
    total = weights.sum()
    if total <= 0:
        return float("nan")
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    expected = np.bincount(bins, weights * scores, BINS)
    found = np.bincount(bins, weights * right, BINS)
    return float(np.abs(expected - found).sum() / total)


def presence_area(scores: Floats, there: NDArray[np.bool_]) -> Callable[[Floats], float]:
    """The area under the ROC curve of scores as a detector of what is there, equal ones as half, for any weights."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    there = there[order]

    def area(weights: Floats) -> float:
        own = weights[order]
        right, wrong = (np.add.reduceat(own * chosen, starts) for chosen in (there, ~there))
        pairs = right.sum() * wrong.sum()
        return float(right @ (np.cumsum(wrong) - wrong / 2) / pairs) if pairs else math.nan

    return area


def filtered(scores: Floats, right: NDArray[np.bool_], images: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the shares of regions that `THRESHOLDS` keep, None without regions, and of right ones among those."""
    lines: list[dict[str, Any]] = []
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        (precision,) = mean_estimates([right[kept].astype(np.float64)], images[kept])
        share = float(kept.mean()) if kept.size else None
        lines.append({"score": threshold, "kept": share, "precision": precision.plain()})
    return lines


def squared_error_gain(
    before: Floats, after: Floats, right: NDArray[np.bool_], images: NDArray[np.int64], weights: Floats
) -> Estimate:
    """Return how far the mean squared error of scores (Brier 1950) falls from `before` to `after`, paired by region.

    The error falls where scores come nearer to the precision, and where they separate right regions from wrong ones.

    Args:
        before, after: Scores (n,), 0 .. 1, of the same regions.
        right: Whether each region is right (n,).
        images: The number of each region's image (n,); the interval resamples images.
        weights: The number of regions that each stands for (n,), above 0.
    """
    gains = weights * ((before - right) ** 2 - (after - right) ** 2)
    return weighted_estimate(lambda drawn: float(drawn @ gains / (drawn @ weights)), images)


def out_of_fold(features: Floats, right: NDArray[np.bool_], images: NDArray[np.int64]) -> Floats:
    """The probability (n,) of each region by a fit on the other folds; all regions of an image are in one fold."""
    fold = np.unique(images, return_inverse=True)[1] % FOLDS
    probability = np.empty(len(right))
    for number in range(FOLDS):
        here = fold == number
        if here.any():
            probability[here] = fit_logistic(features[~here], right[~here]).probability(features[here])
    return probability
