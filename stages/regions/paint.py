"""From a part of a cut map to a mask at the size of the image, as runs.

A *field* is positive inside a part and not positive outside, on the samples of the fine map. A
pixel belongs to the mask if the field, interpolated bilinearly at the pixel's centre
(`fine_map.py` states the convention), is positive. Down a column of the image the field is
piecewise linear, and only where two samples differ in sign can it cross zero. These crossings
are computed instead of pixels, so there is no array of the size of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from phrasebox.stages.contract.geometry import Box, cell_to_px, xyxy_to_xywh
from phrasebox.stages.contract.masks import encode_edges
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.contract.values import Plane, Sides
from phrasebox.stages.regions.parts import HeatPart

_ON_THRESHOLD: Final = np.float32(1e-3)  # A sample on the threshold has a side, too.


def field_of(part: HeatPart, fine: Plane) -> Plane:
    """Return the field of a part: its sign is the part, its size the distance of the map from the part's threshold.

    Where the part is just `fine > threshold`, the field is `fine - threshold` and the mask's
    outline is the exact contour of the map. Where a hole is filled, colours added or removed
    samples, or another part begins, the outline runs between the samples, and halfway if the
    map is constant. The fields of two parts are never positive at the same point, so their
    masks do not overlap.

    The map is `fine`, float32 (fine_h, fine_w), and so is the field, in the unit of the
    threshold and nowhere 0.
    """
    field: Plane = -np.maximum(np.abs(fine - np.float32(part.threshold)), _ON_THRESHOLD)
    inner = field[part.window]
    inner[...] = np.where(part.inside, -inner, inner)
    return field


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMask:
    """A mask at the size of the image with a half-open box and its number of pixels; for the rest see `Region`."""

    mask: Rle
    box_xywh_px: Box
    area_px: int
    box_of: str = "mask"
    refined: str = "none"
    fallback: str | None = None


def paint(field: Plane, size_hw: Sides) -> RegionMask | None:
    """Return the mask of a field (fine_h, fine_w) over an image of `size_hw` pixels, or None if it holds no pixel."""
    height_px, width_px = size_hw
    full_h, full_w = field.shape
    left, top, w, h = cv2.boundingRect((field > 0).view(np.uint8))
    if not w:
        return None
    # One sample more on each side: a contour lies between a positive and a negative sample.
    bottom = min(full_h, top + h + 1)
    top = max(0, top - 1)
    first_column = max(0, math.floor(cell_to_px(left - 1.0, side_px=width_px, cells=full_w)))
    stop = min(width_px, math.ceil(cell_to_px(float(left + w), side_px=width_px, cells=full_w)))
    # Rows of `columns` hold the field down the columns of the image, with a sample outside
    # beyond both ends.
    padded = np.full((full_w, bottom - top + 2), -1.0, np.float32)
    padded[:, 1:-1] = field[top:bottom].T
    columns = cv2.resize(padded, (padded.shape[1], width_px), interpolation=cv2.INTER_LINEAR)[
        first_column:stop
    ]
    inside = (columns > 0).ravel()
    before = np.flatnonzero(inside[1:] != inside[:-1])
    column, sample = np.divmod(before, padded.shape[1])
    value = columns.ravel()[before].astype(np.float64)
    crossing = top - 1 + sample + value / (value - columns.ravel()[before + 1])
    position = cell_to_px(crossing, side_px=height_px, cells=full_h) - 0.5
    # What is inside at the first or last sample of the image goes on to the edge of the image.
    position[sample == 0] = -1
    position[sample == padded.shape[1] - 2] = height_px
    # The centre i + 0.5 of a pixel inside lies strictly between entering and leaving.
    start = np.maximum(np.floor(position[0::2]) + 1, 0).astype(np.int64)
    stop = np.minimum(np.ceil(position[1::2]), height_px).astype(np.int64)
    is_filled = stop > start
    column = column[0::2][is_filled] + first_column
    if not column.size:
        return None
    start = start[is_filled]
    stop = stop[is_filled]
    edges = column[:, None] * height_px + np.stack([start, stop], axis=1)
    runs = edges.ravel()
    is_joined = edges[1:, 0] == edges[:-1, 1]
    if is_joined.any():  # a run down to the lower edge continues at the upper edge of the next column
        runs = np.concatenate([runs[:1], runs[1:-1][np.repeat(~is_joined, 2)], runs[-1:]])
    return RegionMask(
        mask=encode_edges(runs, size_hw),
        box_xywh_px=xyxy_to_xywh(
            (float(column[0]), float(start.min()), float(column[-1] + 1), float(stop.max()))
        ),
        area_px=int((stop - start).sum()),
    )
