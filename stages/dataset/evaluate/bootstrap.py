"""Percentile bootstrap over images: phrases of one image are not independent, so whole images are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1000
SEED: Final = 0
LEVEL: Final = 0.95
"""Two-sided confidence level of all intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval and how many values it comes from; NaN without any."""

    value: float
    low: float
    high: float
    n: int


def mean_estimate(values: NDArray[np.float64], images: NDArray[np.int64], resamples: int = RESAMPLES) -> Estimate:
    """Mean of values (n,) that belong to images (n,), numbers >= 0."""
    if values.size == 0:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    _, owner = np.unique(images, return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner).astype(np.float64)
    rng = np.random.default_rng(SEED)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = _draw(rng, counts.size)
        means[i] = (drawn @ sums) / (drawn @ counts)
    return _estimate(float(values.mean()), means, values.size)


def weighted_estimate(
    statistic: Callable[[NDArray[np.float64]], float], images: NDArray[np.int64], resamples: int
) -> Estimate:
    """Any statistic of weights (n,), one per value, where images (n,) says to which image a value belongs."""
    if images.size == 0:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    names, owner = np.unique(images, return_inverse=True)
    rng = np.random.default_rng(SEED)
    drawn = np.array([statistic(_draw(rng, names.size)[owner]) for _ in range(resamples)])
    return _estimate(statistic(np.ones(images.size)), drawn, images.size)


def _draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """How often each of `count` images is drawn in a sample of `count` with replacement."""
    return np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _estimate(value: float, drawn: NDArray[np.float64], n: int) -> Estimate:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(value=value, low=low, high=high, n=n)
