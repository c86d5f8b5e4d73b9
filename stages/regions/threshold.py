"""Where a heat map is cut into inside and outside.

All rules work on whole levels 0 .. 255 and answer k + 0.5 with k whole: a value is inside if its
level is greater than k. Between two levels no flat part of the map can lie exactly on the
threshold, where rounding noise of the interpolation would draw its pattern.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from stages.regions.heat import LEVELS

Rule = Literal["mean", "otsu", "fixed", "quantile"]

ROUNDING: Final = 1e-9
"""Added before rounding down, so that 0.6 of 255 is 153 and not 152."""


def cut(levels: NDArray[np.uint8], rule: Rule, *, share: float, quantile: float) -> float:
    """The threshold of a map by one of the rules, in levels (k + 0.5).

    levels: uint8, any shape. `share` is used by "fixed" only, `quantile` by "quantile" only.
    """
    match rule:
        case "mean":
            return mean_cut(levels)
        case "otsu":
            return otsu_cut(levels)
        case "fixed":
            return fixed_cut(share)
        case "quantile":
            return quantile_cut(levels, quantile)


def mean_cut(levels: NDArray[np.uint8]) -> float:
    """Inside is what lies above the map's mean: Chefer et al.'s segmentation protocol (ICCV 2021)."""
    return math.floor(float(levels.mean(dtype=np.float64))) + 0.5


def fixed_cut(share: float) -> float:
    """Inside is what lies above a share (0 .. 1) of the largest value, after the smallest became 0."""
    return math.floor(share * LEVELS + ROUNDING) + 0.5


def quantile_cut(levels: NDArray[np.uint8], quantile: float) -> float:
    """Inside is what lies above the value at a quantile (0 .. 1) of the map's values.

    The quantile is a value of the map (the lower of two neighbours). On maps with ties fewer than
    `1 - quantile` of the values may lie above it, none if the quantile is the largest value.
    """
    ordered = np.sort(levels, axis=None)
    return float(ordered[math.floor(quantile * (ordered.size - 1) + ROUNDING)]) + 0.5


def otsu_cut(levels: NDArray[np.uint8]) -> float:
    """Otsu's threshold: the largest variance between the two classes (IEEE Trans. SMC 9, 1979).

    All cuts within a gap of the histogram have the same variance. The middle one is taken, halfway
    between the classes; OpenCV's is the lowest, which on an almost empty map keeps everything
    above zero. Of two equally good gaps the lower one is taken. Computed on whole counts, so that
    the answer is the same on every machine.
    """
    counts = np.bincount(levels.ravel(), minlength=LEVELS + 1)
    below = np.cumsum(counts)[:-1].astype(np.float64)
    sum_below = np.cumsum(counts * np.arange(LEVELS + 1))
    total, sum_total = float(levels.size), float(sum_below[-1])
    above = total - below
    split = (below > 0) & (above > 0)
    if not split.any():  # a single level: nothing lies above it
        return float(levels.flat[0]) + 0.5
    # n0 n1 (m1 - m0)^2, written with sums so that equal counts give equal values to the last bit
    spread = (sum_total * below - total * sum_below[:-1]) ** 2
    variance = np.divide(spread, below * above, out=np.zeros_like(spread), where=split)
    lowest = int(variance.argmax())
    highest = int(np.searchsorted(below, below[lowest], side="right")) - 1
    return float((lowest + highest) // 2) + 0.5
