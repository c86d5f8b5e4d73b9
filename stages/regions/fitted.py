"""A learned rule where to cut: of several cuts of a map, the one whose main part is most likely the thing.

Every map is cut at each of `SHARES`, and what is seen of the main part of each cut, the one with most heat, is weighed:

    worth = sum of weight * (feature - mean) / scale        the cut with the highest worth is taken

A share that is right for a sharp map is wrong for a broad one, and no rule that looks at the histogram alone knows how
large things are: a "beach" mostly fills its image, a "hat" never does. Weights and usual sizes are fitted to images
with known boxes (`phrasebox calibrate`). They hold for the model and the settings that they were fitted with, as a
calibration does, in whose file they stand: those of photographs and `photo` cut drawn scenes and `demo` worse than any
other rule (configs/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS
from stages.regions.thresholds import fixed_cut

Floats = NDArray[np.float64]

SHARES: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Where every map is cut: shares of its highest heat, once the lowest is 0. Eight are as good as seventeen."""

FEATURES: Final = (
    "share",
    "share_squared",
    "energy",
    "energy_squared",
    "mean_inside",
    "mean_outside",
    "log_area",
    "log_area_squared",
    "log_box_area",
    "log_box_area_squared",
    "outside_to_inside",
    "outside_to_inside_squared",
    "share_by_box_area",
    "energy_by_box_area",
    "mean_inside_by_box_area",
    "usual_by_box_area",
)
"""What is weighed of a cut, in this order, all of its main part: the heat it was cut at, its share of all heat, the
mean heat in it and outside, the shares of the image that it and the box around it cover, and products of these; the
last is that of the box and the usual size of what the phrase names."""


@dataclass(frozen=True, kw_only=True)
class FittedCut:
    """Weights, means and scales of `FEATURES` by name; no scale is 0.

    Attributes:
        usual: The usual size of what a head noun names: the logarithm of how many times as much of their image the
            boxes of such things cover as those of all things. Nouns that are not in it are of usual size, 0.
    """

    weight: Mapping[str, float]
    mean: Mapping[str, float]
    scale: Mapping[str, float]
    usual: Mapping[str, float]

    def __call__(self, levels: NDArray[np.uint8], usual: Sequence[float]) -> list[float]:
        """Thresholds in levels (k + 0.5); of equals the lowest.

        Args:
            levels: Maps, uint8 (maps, h, w), the highest of each map `LEVELS`.
            usual: Of each map, see `usual_size`.
        """
        features = cut_features(levels, usual)
        weight, mean, scale = (
            np.array([part[name] for name in FEATURES]) for part in (self.weight, self.mean, self.scale)
        )
        # Rounded, so that the last bits of a product decide nothing.
        worth = np.round((features - mean) / scale @ weight, 9)
        best = np.where(np.isfinite(worth), worth, -np.inf).argmax(axis=1)
        return [fixed_cut(SHARES[number]) for number in best.tolist()]

    def usual_size(self, heads: Collection[str]) -> float:
        """The mean of the usual sizes of what one map is of, by the head nouns of its phrases."""
        return fmean(self.usual.get(head, 0.0) for head in heads) if heads else 0.0

    @classmethod
    def of(cls, weight: Floats, mean: Floats, scale: Floats, usual: Mapping[str, float]) -> Self:
        """From arrays (len(FEATURES),) in the order of `FEATURES`."""
        weights, means, scales = (dict(zip(FEATURES, part.tolist(), strict=True)) for part in (weight, mean, scale))
        return cls(weight=weights, mean=means, scale=scales, usual=usual)

    def plain(self) -> dict[str, dict[str, float]]:
        """Plain values for a calibration's file."""
        return {part: dict(getattr(self, part)) for part in ("weight", "mean", "scale", "usual")}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `plain`. Raises ValueError, KeyError or TypeError for other values."""
        weight, mean, scale = (
            {name: float(values[part][name]) for name in FEATURES} for part in ("weight", "mean", "scale")
        )
        unknown = set(values["weight"]) - set(FEATURES)
        if unknown:
            raise ValueError(f"unknown features of the cut {', '.join(sorted(unknown))}")
        usual = {str(head): float(size) for head, size in values["usual"].items()}
        numbers = [*weight.values(), *mean.values(), *scale.values(), *usual.values()]
        if not all(map(math.isfinite, numbers)) or not all(scale.values()):
            raise ValueError("expected finite numbers and scales that are not 0")
        return cls(weight=weight, mean=mean, scale=scale, usual=usual)


def cut_features(levels: NDArray[np.uint8], usual: Sequence[float]) -> Floats:
    """What is seen of the main part of every cut of maps.

    All cuts of all maps are one image, in which an empty row divides them: OpenCV finds their parts in one call.

    Args:
        levels: uint8 (maps, h, w), the highest of each map `LEVELS`.
        usual: The usual size of what each map is of, see `FittedCut.usual_size`.

    Returns:
        float64 (maps, len(SHARES), len(FEATURES)); NaN where nothing lies above a cut.
    """
    maps, h, w = levels.shape
    cuts = maps * len(SHARES)
    bounds = np.array([math.floor(fixed_cut(share)) for share in SHARES], np.uint8)
    sheet = np.zeros((maps, len(SHARES), h + 1, w), np.bool_)
    np.greater(levels[:, None], bounds[None, :, None, None], out=sheet[:, :, :h])
    heat = np.zeros(sheet.shape, np.float64)
    heat[:, :, :h] = levels[:, None]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        sheet.view(np.uint8).reshape(cuts * (h + 1), w), connectivity=8, ltype=cv2.CV_32S
    )
    energy = np.bincount(labels.ravel(), weights=heat.ravel(), minlength=count)[1:]
    left, top, width, height, area = stats[1:].T
    owner = top // (h + 1)
    order = np.lexsort((left, top, -energy, owner))
    owners, first = np.unique(owner[order], return_index=True)
    main = order[first]
    found = np.full((cuts, len(FEATURES)), np.nan)
    samples, box = area[main].astype(np.float64), (width[main] * height[main]).astype(np.float64)
    inside, total = energy[main], levels.sum(axis=(1, 2), dtype=np.float64)[owners // len(SHARES)]
    share, part = np.array(SHARES)[owners % len(SHARES)], inside / total
    size = np.array(usual, np.float64)[owners // len(SHARES)]
    mean_inside = inside / samples / LEVELS
    mean_outside = (total - inside) / np.maximum(h * w - samples, 1) / LEVELS
    ratio = mean_outside / mean_inside
    log_area, log_box = np.log(samples / (h * w)), np.log(box / (h * w))
    columns = (
        share, share**2, part, part**2, mean_inside, mean_outside, log_area, log_area**2, log_box, log_box**2,
        ratio, ratio**2, share * log_box, part * log_box, mean_inside * log_box,
        size * log_box,
    )  # fmt: skip
    found[owners] = np.stack(columns, axis=-1)
    return found.reshape(maps, len(SHARES), len(FEATURES))
