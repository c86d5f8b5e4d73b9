"""Figures with 95 % intervals, and statistics of scores.

Intervals are a percentile bootstrap over images: phrases of one image are not independent, so
whole images are drawn. Statistics of scores take scores (n,), right (n,) bool and weights (n,),
>= 0, which the bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np
from pydantic_core import from_json, to_json

from phrasebox.pipeline.dataset.selection import SIZES
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.values import Bools, Floats, Integers
from phrasebox.stages.scores.logistic import fit_logistic, roc_area

RESAMPLES: Final = 2000

SEED: Final = 0
LEVEL: Final = 0.95  # two-sided confidence level of all intervals

BINS: Final = 15
"""Bins of equal mass for the calibration error."""

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
class ScoreFilter:
    """Regions with a score of `score` or more.

    Attributes:
        score: The least score.
        share: Their share of all regions; None without regions.
        precision: The share of these that are right.
        sizes: Name in `SIZES` -> the precision of those of this size.
    """

    score: float
    share: float | None
    precision: Estimate
    sizes: Estimates = field(default_factory=dict)


def plain_values(result: object) -> Any:
    """Return a result as values of JSON: dataclasses become dictionaries, and NaN becomes None.

    >>> plain_values({"recall": Estimate(value=0.5, n=1)})
    {'recall': {'value': 0.5, 'low': None, 'high': None, 'n': 1}}
    """
    return from_json(to_json(result, inf_nan_mode="null"))


def resampled_sums(values: Floats, images: Integers) -> tuple[Floats, Floats]:
    """Return the sums (k,) of values (n, k) that belong to images (n,), and those of each resample (RESAMPLES, k)."""
    _, image_index = np.unique(images, return_inverse=True)
    sums = np.zeros((image_index.max() + 1, values.shape[1]))
    np.add.at(sums, image_index, values)
    return sums.sum(axis=0), np.array([weights @ sums for weights in _draws(len(sums), RESAMPLES)])


def ratio_estimates(parts: Floats | Bools, wholes: Floats | Bools, images: Integers) -> list[Estimate]:
    """Return the k ratios of the sums of parts (n, k) to those of wholes (n, k), which are what `n` counts.

    All kinds share the resamples: to draw them takes far longer than to use them.
    """
    kinds = parts.shape[1]
    if images.size == 0:
        return [Estimate()] * kinds
    totals, draws = resampled_sums(np.hstack([parts, wholes]), images)
    ratios = draws[:, :kinds] / np.where(draws[:, kinds:] > 0, draws[:, kinds:], np.nan)
    return [
        _estimate(part / whole, ratio, int(whole)) if whole else Estimate()
        for part, whole, ratio in zip(*np.split(totals, 2), ratios.T, strict=True)
    ]


def mean_estimates(values: Sequence[Floats], images: Integers) -> list[Estimate]:
    """Return the means of several kinds of values (n,) that belong to images (n,), numbers >= 0."""
    columns = np.column_stack(values)
    return ratio_estimates(columns, np.ones_like(columns), images)


def weighted_estimate(statistic: Callable[[Floats], float], images: Integers) -> Estimate:
    """Return a statistic of weights (n,), one per value, with its interval; images (n,): the image of each value."""
    if images.size == 0:
        return Estimate()
    numbers, image_index = np.unique(images, return_inverse=True)
    values = np.array([statistic(weights[image_index]) for weights in _draws(numbers.size, RESAMPLES)])
    return _estimate(statistic(np.ones(images.size)), values, images.size)


def sum_estimate(figure: Callable[[Floats], float], values: Floats, images: Integers) -> Estimate:
    """Return a figure of the sums (k,) of values (n, k) that belong to images (n,), with its interval."""
    if images.size == 0:
        return Estimate()
    sums, draws = resampled_sums(values, images)
    return _estimate(figure(sums), np.array([figure(draw) for draw in draws]), images.size)


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
    with the variance over images. Resamples are moved so that the mean of their squares is that of
    the estimate: chance counts twice in them, and a bin of few answers is empty in some.
    """
    if images.size == 0:
        return Estimate()
    bins = np.argsort(np.argsort(scores, kind="stable")) * BINS // scores.size
    is_in_bin = bins[:, None] == np.arange(BINS)
    sums, draws = resampled_sums(np.hstack([is_in_bin * (scores - right)[:, None], is_in_bin]), images)
    gaps, mass = np.split(sums, 2)
    drawn_gaps, drawn_mass = np.hsplit(draws, 2)
    distance = gaps / np.maximum(mass, 1.0)
    resampled_distances = drawn_gaps / np.maximum(drawn_mass, 1.0)
    variance = resampled_distances.var(axis=0)
    shares = mass / mass.sum()
    square = float((distance**2 - variance) @ shares)
    resampled_squares = resampled_distances**2 @ shares
    moved_squares = square + (resampled_squares - resampled_squares.mean())
    return _estimate(math.sqrt(max(0.0, square)), np.sqrt(np.maximum(0.0, moved_squares)), scores.size)


def presence_area(scores: Floats, is_present: Bools, images: Integers) -> Estimate:
    """Return the area under the ROC curve of scores (n,) as a detector of presence; equal scores count as half."""
    area = roc_area(scores)
    return weighted_estimate(lambda weights: area(weights * is_present, weights * ~is_present), images)


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
    columns = groups.reshape(len(scores), len(THRESHOLDS) * (1 + len(SIZES)))
    estimates = iter(ratio_estimates(columns & right[:, None], columns, images))
    filters: list[ScoreFilter] = []
    for threshold, is_chosen in zip(THRESHOLDS, is_above.T, strict=True):
        precision, *by_size = islice(estimates, 1 + len(SIZES))
        share = float(is_chosen.mean()) if is_chosen.size else None
        by_name = dict(zip(SIZES, by_size, strict=True))
        filters.append(ScoreFilter(score=threshold, share=share, precision=precision, sizes=by_name))
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


def predict_out_of_fold(images: Integers, predict: Callable[[Bools], Floats]) -> Floats:
    """Return predictions (n,) for values that belong to images (n,), by fits to the images of other folds.

    predict: Returns predictions for the values in a fold, bool (n,), by a fit to the others.
    """
    fold = np.unique(images, return_inverse=True)[1] % FOLDS
    predictions = np.empty(len(images))
    for number in np.unique(fold):
        predictions[fold == number] = predict(fold == number)
    return predictions


def judge_with_folds(features: Floats, labels: Bools, images: Integers, kinds: tuple[str, str]) -> Floats:
    """Return the probability (n,) of each value by a logistic regression that was fitted to the images of other folds.

    Args:
        features: Those of regions or phrases (n, k).
        labels: What the regression tells of each (n,).
        images: The number of the image of each (n,).
        kinds: What those with and without the label are called, as ("right regions", "wrong regions").

    Raise InputError if all values are of one kind, or all of those outside some fold.
    """

    def predict(in_fold: Bools) -> Floats:
        fitted = labels[~in_fold]
        if fitted.all() or not fitted.any():
            counts = f"{labels.sum()} {kinds[0]} and {(~labels).sum()} {kinds[1]}"
            raise InputError(
                f"{counts} in {len(np.unique(images))} images are too one-sided to fit to: without one fifth of these "
                f"images there are no {kinds[int(fitted.any())]}"
            )
        return fit_logistic(features[~in_fold], fitted).probability(features[in_fold])

    return predict_out_of_fold(images, predict)
