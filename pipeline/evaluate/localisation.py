"""What a plain heat map says of a thing's place, at any threshold: the same rule for every explainer.

A map is drawn over its image with `SAMPLES` samples along the longer side, bilinear between its values. What lies above
a threshold is its mask. The box is the one around the part of the mask that holds most heat; parts touch each other
also by a corner. Nothing is blurred, and no colours are looked at: `phrasebox eval` measures what a run makes of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import Box, box_iou, resize_shifted
from stages.contract.records import HeatMap

SAMPLES: Final = 128
"""Samples along the longer side: several for each cell of a map. Their number costs its square."""

SHARES: Final = tuple(step / 10 for step in range(1, 10))
"""Shares of a map's maximum that are tried as a threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a thing is, on the samples of its image.

    Attributes:
        inside: bool (rows, columns), its mask, or its boxes where there is no mask.
        boxes_xywh: One or several, in samples.
    """

    inside: NDArray[np.bool_]
    boxes_xywh: tuple[Box, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlaps:
    """What a threshold gives: IoU of the box with its best true box, and of the mask with the true one, 0 .. 1."""

    box: float
    mask: float


def samples_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of samples of an image of that many pixels."""
    scale = SAMPLES / max(size_hw)
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def drawn(heat_map: HeatMap, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """A map as float32 of `size_hw`, bilinear between where its values lie."""
    if heat_map.shift_cells:
        return resize_shifted(heat_map.values, size_hw, heat_map.shift_cells)
    heat: NDArray[np.float32] = cv2.resize(heat_map.values, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return heat


def place_of(inside: NDArray[np.bool_], boxes_xywh_px: Sequence[Box]) -> Place:
    """The place of a thing whose pixels and boxes in its image are known."""
    rows, columns = samples_hw((inside.shape[0], inside.shape[1]))
    covered = cv2.resize(inside.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    down, right = rows / inside.shape[0], columns / inside.shape[1]
    # A thin thing would vanish if every sample had to lie on it by half.
    kept = covered >= min(0.5, float(covered.max())) if covered.any() else covered > 0
    boxes = tuple((x * right, y * down, w * right, h * down) for x, y, w, h in boxes_xywh_px)
    return Place(inside=kept, boxes_xywh=boxes)


def overlaps(heat: NDArray[np.float32], threshold: float, place: Place) -> Overlaps:
    """What lies above a threshold, compared with the truth.

    Args:
        heat: (rows, columns) of samples, >= 0.
        threshold: In the map's own scale.
        place: On the same samples.
    """
    above = heat > threshold
    if not above.any():
        return Overlaps(box=0.0, mask=0.0)
    union = np.count_nonzero(above | place.inside)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    held = np.bincount(parts.ravel(), weights=heat.ravel(), minlength=count)
    x, y, w, h = (float(value) for value in stats[1 + int(held[1:].argmax())][:4])
    return Overlaps(
        box=max(box_iou((x, y, w, h), box) for box in place.boxes_xywh),
        mask=np.count_nonzero(above & place.inside) / union,
    )


def at_shares(heat: NDArray[np.float32], place: Place) -> list[Overlaps]:
    """`overlaps` at every one of `SHARES` of the map's maximum."""
    top = float(heat.max())
    return [overlaps(heat, share * top, place) for share in SHARES]
