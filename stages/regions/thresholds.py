"""The rules by which heat maps are cut.

They work on whole levels 0 .. 255 and answer k + 0.5 with k whole: a value is inside if its level is greater than k.
Between two levels, no flat part of the map can lie exactly on the threshold, where the rounding noise of the
interpolation would draw its pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS

if TYPE_CHECKING:
    from stages.regions.config import Rule
    from stages.regions.fitted import FittedCut

ROUNDING: Final = 1e-9
"""Added before rounding down, so that 0.6 of 255 is 153 and not 152."""


def cut(
    maps: Sequence[NDArray[np.uint8]],
    rule: Rule,
    *,
    share: float,
    quantile: float,
    fitted: FittedCut | None,
    usual: Sequence[float],
) -> list[float]:
    """The thresholds of maps by one of the rules, in levels (k + 0.5).

    maps: Levels, uint8 (h, w), of one shape. `share` is for "fixed" only, `quantile` for "quantile" and `fitted` for
    "fitted", which is "mean" without; so are the usual sizes of what the maps are of (`FittedCut.usual_size`).
    """
    match rule:
        case "mean":
            return mean_cut(np.stack(maps))
        case "otsu":
            return otsu_cut(np.stack(maps))
        case "fixed":
            return [fixed_cut(share)] * len(maps)
        case "quantile":
            return quantile_cut(np.stack(maps), quantile)
        case "fitted":
            return mean_cut(np.stack(maps)) if fitted is None else fitted(np.stack(maps), usual)


def mean_cut(levels: NDArray[np.uint8]) -> list[float]:
    """Inside is what lies above the map's mean: Chefer et al.'s segmentation protocol (ICCV 2021).

    levels: uint8 (maps, h, w), as for the other rules.
    """
    found: list[float] = (np.floor(levels.mean(axis=(1, 2), dtype=np.float64)) + 0.5).tolist()
    return found


def fixed_cut(share: float) -> float:
    """Inside is what lies above a share (0 .. 1) of the highest value, once the lowest is 0."""
    return math.floor(share * LEVELS + ROUNDING) + 0.5


def quantile_cut(levels: NDArray[np.uint8], quantile: float) -> list[float]:
    """Inside is what lies above the value at a quantile (0 .. 1) of the map's values.

    The quantile is a value of the map (the lower of two neighbours). On maps with ties fewer than `1 - quantile` of the
    values may lie above it, and none if the quantile is the highest value.
    """
    ordered = np.sort(levels.reshape(len(levels), -1), axis=1)
    found: list[float] = (ordered[:, math.floor(quantile * (ordered.shape[1] - 1) + ROUNDING)] + 0.5).tolist()
    return found


def otsu_cut(levels: NDArray[np.uint8]) -> list[float]:
    """Otsu's threshold: the largest variance between the two classes (IEEE Trans. SMC 9, 1979).

    All cuts within a gap of the histogram have the same variance. The middle one is taken, halfway between the classes;
    OpenCV takes the lowest, which on an almost empty map keeps everything above zero. Of two equally good gaps the
    lower one is taken. Computed on whole counts, so that the answer is the same on every machine.
    """
    maps, size = len(levels), LEVELS + 1
    values = levels.reshape(maps, -1)
    own = values + np.arange(maps)[:, None] * size  # each map counts in a histogram of its own
    counts = np.bincount(own.ravel(), minlength=maps * size).reshape(maps, size)
    below = np.cumsum(counts, axis=1)[:, :-1].astype(np.float64)
    sum_below = np.cumsum(counts * np.arange(size), axis=1)
    total, sum_total = float(values.shape[1]), sum_below[:, -1:].astype(np.float64)
    above = total - below
    split = (below > 0) & (above > 0)
    # n0 n1 (m1 - m0)^2, written with sums so that equal counts give equal values to the last bit
    spread = (sum_total * below - total * sum_below[:, :-1]) ** 2
    variance = np.divide(spread, below * above, out=np.zeros_like(spread), where=split)
    lowest = variance.argmax(axis=1)
    highest = (below <= below[np.arange(maps), lowest][:, None]).sum(axis=1) - 1
    # Above a single level lies nothing.
    found: list[float] = (np.where(split.any(axis=1), (lowest + highest) // 2, values[:, 0]) + 0.5).tolist()
    return found
