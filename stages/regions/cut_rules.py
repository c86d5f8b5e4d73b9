"""The threshold of a heat map: the four rules of `regions.rule`, one of them learned.

Rules work on whole levels 0 .. 255 and answer k + 0.5 with k whole: a value is inside if its
level is greater than k. Between two levels, no flat part of the map can lie exactly on the
threshold, where the rounding noise of the interpolation would draw its pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.contract.values import Levels, Plane
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.fits import Floats
from phrasebox.stages.scores.fitted_cut import CUT_FEATURES, SHARES, FittedCut

Values = Levels | Plane

ROUNDING: Final = 1e-9  # Added before rounding down, so that 0.6 of 255 is 153 and not 152


def thresholds_of(
    config: RegionsConfig, fitted_cut: FittedCut | None, maps: Levels, usual_sizes: Sequence[float]
) -> list[float]:
    """Return the threshold of each of some maps by `config.rule`, in levels (k + 0.5).

    The rule `fitted` needs `fitted_cut`, see `RegionsConfig.with_fallback_cut`, and the usual size of
    the object of each map, see `FittedCut.usual_size`. A new rule is a value of `Rule` and a case here.
    One that uses `threshold` also changes `phrasebox.pipeline.run.calibration.calibration_basis`.

    Args:
        config: The settings.
        fitted_cut: The fit.
        maps: uint8 (n, h, w), in levels.
        usual_sizes: n of them.
    """
    if config.rule == "fitted" and fitted_cut is not None:
        best: list[float] = CUTS[fitted_cut.best_cuts(cut_features(maps, usual_sizes))].tolist()
        return best
    config = config.with_fallback_cut()
    match config.rule:
        case "otsu":
            return [otsu_cut(levels) for levels in maps]
        case "fixed":
            return [fixed_cut(config.threshold)] * len(maps)
        case "mean":
            return [mean_cut(levels) for levels in maps]
    raise ValueError(f"no rule {config.rule} without a fit")


def mean_cut(levels: Levels) -> float:
    """Return the map's mean as threshold: Chefer et al.'s segmentation protocol (ICCV 2021).

    >>> mean_cut(np.array([[0, 0, 0, 100]], np.uint8))
    25.5
    """
    return math.floor(float(levels.mean(dtype=np.float64))) + 0.5


def fixed_cut(share: float) -> float:
    """Return a share (0 .. 1) of the highest value as threshold, once the lowest is 0.

    >>> fixed_cut(0.2)
    51.5
    """
    return math.floor(share * LEVELS + ROUNDING) + 0.5


def otsu_cut(levels: Levels) -> float:
    """Return Otsu's threshold: the largest variance between the two classes (IEEE Trans. SMC 9, 1979).

    All cuts within a gap of the histogram have the same variance. This is the middle one,
    halfway between the classes; OpenCV takes the lowest, which on an almost empty map keeps
    everything above zero. Of two equally good gaps, the lower one counts.

    >>> otsu_cut(np.array([[10, 10, 20, 20]], np.uint8))
    14.5
    """
    counts = np.bincount(levels.ravel(), minlength=LEVELS + 1)
    below = np.cumsum(counts)[:-1].astype(np.float64)
    sums = np.cumsum(counts * np.arange(LEVELS + 1)).astype(np.float64)
    above = levels.size - below
    split = (below > 0) & (above > 0)
    if not split.any():  # above a single level lies nothing
        return int(levels.flat[0]) + 0.5
    # n0 n1 (m1 - m0)^2, written with sums so that equal counts give equal values to the last bit
    spread = (sums[-1] * below - levels.size * sums[:-1]) ** 2
    lowest = int(np.divide(spread, below * above, out=np.zeros_like(spread), where=split).argmax())
    highest = int(np.searchsorted(below, below[lowest], side="right")) - 1
    return (lowest + highest) // 2 + 0.5


CUTS: Final = np.array([fixed_cut(share) for share in SHARES])  # in levels, see `thresholds_of`


class MainParts(NamedTuple):
    """The parts with most heat of those cuts that have a part.

    Attributes:
        maps: (main,), the number of the map of each, rising.
        cuts: (main,), the number of its cut, rising within a map.
        numbers: (main,), the place of the part among the `CutParts`, from 0.
    """

    maps: NDArray[np.int32]
    cuts: NDArray[np.int32]
    numbers: NDArray[np.intp]


class CutParts(NamedTuple):
    """The connected parts of some maps, each cut at several heights; n of all maps and cuts together.

    Attributes:
        labels: (maps, cuts, h + 1, w), the number of a pixel's part, from 1; 0 outside.
        maps: (n,), the number of a part's map.
        cuts: (n,), the number of a part's cut.
        energy: (n,), the sum of a part's values.
        edges: (n, 4), the box of a part, x0, y0, x1, y1, half open, px.
        area: (n,), px.
    """

    labels: NDArray[np.int32]
    maps: NDArray[np.int32]
    cuts: NDArray[np.int32]
    energy: Floats
    edges: NDArray[np.int32]
    area: NDArray[np.int32]

    def main_parts(self) -> MainParts:
        """Return the part with most heat of each cut. Of equals the upper one counts, then the left one."""
        left, top, *_ = self.edges.T
        order = np.lexsort((left, top, -self.energy.round(3), self.cuts, self.maps))
        maps = self.maps[order]
        cuts = self.cuts[order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (cuts[1:] != cuts[:-1]) | (maps[1:] != maps[:-1])
        return MainParts(maps[is_first], cuts[is_first], order[is_first])


def parts_of_cuts(maps: Values, heights: Floats) -> CutParts:
    """Find the parts of maps (n, h, w) above each height.

    All cuts of all maps are one image, divided by empty rows: OpenCV finds their parts in one call.
    """
    n, h, w = maps.shape
    sheet = np.zeros((n, len(heights), h + 1, w), np.uint8)
    np.greater(maps[:, None], heights[:, None, None], out=sheet[:, :, :h].view(np.bool_))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        sheet.reshape(-1, w), connectivity=8, ltype=cv2.CV_32S
    )
    inside = np.flatnonzero(sheet)
    places = inside % ((h + 1) * w) + inside // (len(heights) * (h + 1) * w) * (h * w)
    heat = maps.ravel()[places]
    energy: Floats = np.bincount(labels.ravel()[inside], weights=heat, minlength=count)[1:].astype(
        np.float64
    )
    left, top, width, height, area = stats[1:].T
    sheets, top = np.divmod(top, h + 1)
    edges = np.stack([left, top, left + width, top + height], axis=1)
    return CutParts(labels.reshape(sheet.shape), *np.divmod(sheets, len(heights)), energy, edges, area)


def cut_features(maps: Levels, usual_sizes: Sequence[float]) -> Floats:
    """Return the features of the main part of every cut of some maps.

    Args:
        maps: uint8 (n, h, w). The highest level of each is `LEVELS`.
        usual_sizes: n of them, see `FittedCut.usual_size`.

    Returns:
        float64 (n, len(SHARES), len(CUT_FEATURES)), NaN where nothing lies above a cut.
    """
    n, h, w = maps.shape
    parts = parts_of_cuts(maps, CUTS)
    main = parts.main_parts()
    x0, y0, x1, y1 = parts.edges[main.numbers].T
    samples = parts.area[main.numbers].astype(np.float64)
    box = ((x1 - x0) * (y1 - y0)).astype(np.float64)
    inside = parts.energy[main.numbers]
    total = maps.sum(axis=(1, 2), dtype=np.float64)[main.maps]
    mean_inside = inside / samples / LEVELS
    mean_outside = (total - inside) / np.maximum(h * w - samples, 1) / LEVELS
    share = np.array(SHARES)[main.cuts]
    energy = inside / total
    ratio = mean_outside / mean_inside
    log_area = np.log(samples / (h * w))
    log_box = np.log(box / (h * w))
    usual_size = np.array(usual_sizes)[main.maps]
    columns = (
        share, share**2, energy, energy**2, mean_inside, mean_outside, log_area, log_area**2, log_box, log_box**2,
        ratio, ratio**2, share * log_box, energy * log_box, mean_inside * log_box, usual_size * log_box,
    )  # fmt: skip
    features = np.full((n, len(SHARES), len(CUT_FEATURES)), np.nan)
    features[main.maps, main.cuts] = np.stack(columns, axis=-1)
    return features
