"""From a part of a cut map to a mask at the size of the image, as runs.

A *field* is positive inside a part and not positive outside, on the samples of the fine map around the part. A pixel
belongs to the mask if the field, interpolated bilinearly at the pixel's centre (`parts.py` states the convention), is
positive. Down a column of the image the field is piecewise linear, and only where two samples differ in sign can it
cross zero. These crossings are computed instead of pixels, so there is no array of the size of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import Box, cell_to_px, px_to_cell
from stages.contract.masks import encode_edges
from stages.contract.records import Rle
from stages.regions.parts import HeatPart


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedField:
    """A field over the whole image, of which only a window is stored: elsewhere it is not positive.

    Attributes:
        values: float32 (h, w), finite; not positive along those sides of the window that lie within the image.
        top: Where the window begins, in samples, as `left`.
        full_hw: Samples over the whole image.
    """

    values: NDArray[np.float32]
    top: int
    left: int
    full_hw: tuple[int, int]


def field_of(part: HeatPart, fine: NDArray[np.float32], threshold: float) -> SignedField:
    """Return the field whose sign is the part and whose size is the distance of the map from the threshold.

    Where the part is just `fine > threshold`, the field is `fine - threshold` and the mask's outline is the exact
    contour of the map. Where a hole is filled, colours added or removed samples, or another part begins, the outline
    runs between the samples, and halfway if the map is constant. The fields of two parts are never positive at the
    same point, so their masks do not overlap.

    Args:
        part: A part of the map.
        fine: float32 (fine_h, fine_w), same unit as `threshold`.
        threshold: Where the map was cut.
    """
    (h, w), (full_h, full_w) = part.inside.shape, fine.shape
    # One sample more on each side: a contour lies between a positive and a negative sample.
    top, left = max(0, part.top - 1), max(0, part.left - 1)
    window = fine[top : part.top + h + 1, left : part.left + w + 1]
    # A sample on the threshold has a side, too.
    values = np.maximum(np.abs(window - np.float32(threshold)), np.float32(1e-3))
    outside = np.ones(values.shape, np.bool_)
    row, column = part.top - top, part.left - left
    np.logical_not(part.inside, out=outside[row : row + h, column : column + w])
    np.negative(values, out=values, where=outside)
    return SignedField(values=values, top=top, left=left, full_hw=(full_h, full_w))


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A mask at the size of the image with its half-open box and its number of pixels."""

    mask: Rle
    box_xywh_px: Box
    area_px: int


def paint(field: SignedField, size_hw: tuple[int, int]) -> Painted | None:
    """Return the mask of a field over an image of `size_hw` pixels, or None if it holds no pixel."""
    (height_px, width_px), full_h = size_hw, field.full_hw[0]
    first_px, columns = _columns(field, width_px)
    h = columns.shape[1]
    inside = np.zeros((len(columns), h + 2), np.bool_)  # beyond both ends nothing is inside
    np.greater(columns, 0, out=inside[:, 1:-1])
    column, second = np.divmod(np.flatnonzero(inside[:, 1:] != inside[:, :-1]), h + 1)
    here = columns[column, second - 1].astype(np.float64)
    there = columns[column, np.minimum(second, h - 1)].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = second - 1 + here / (here - there)
    # What is inside at the first or last sample of the image goes on to the edge of the image.
    crossing[second == 0] = -np.inf
    crossing[second == h] = np.inf
    position = cell_to_px(field.top + crossing, side_px=height_px, cells=full_h) - 0.5
    # The pixels inside are those whose centre i + 0.5 lies strictly between entering and leaving.
    start = np.maximum(np.floor(position[0::2]) + 1, 0).astype(np.int64)
    stop = np.minimum(np.ceil(position[1::2]), height_px).astype(np.int64)
    filled = stop > start
    column, start, stop = column[0::2][filled] + first_px, start[filled], stop[filled]
    if not column.size:
        return None
    left, right, top, bottom = column[0], column[-1] + 1, start.min(), stop.max()
    begin, end = column * height_px + start, column * height_px + stop
    # A run down to the lower edge continues at the upper edge of the next column.
    apart = begin[1:] != end[:-1]
    edges = np.stack([begin[np.append(True, apart)], end[np.append(apart, True)]], axis=1).ravel()
    return Painted(
        mask=encode_edges(edges, size_hw),
        box_xywh_px=(float(left), float(top), float(right - left), float(bottom - top)),
        area_px=int((stop - start).sum()),
    )


def _columns(field: SignedField, width_px: int) -> tuple[int, NDArray[np.float32]]:
    """The first column of the image that a field reaches, and the field along these columns: (columns, h)."""
    w, cells = field.values.shape[1], field.full_hw[1]
    first = max(0, math.floor(cell_to_px(field.left - 1.0, side_px=width_px, cells=cells)))
    stop = min(width_px, math.ceil(cell_to_px(float(field.left + w), side_px=width_px, cells=cells)))
    centres = np.arange(first, stop, dtype=np.float64) + 0.5
    position = (px_to_cell(centres, side_px=width_px, cells=cells) - field.left).clip(0, w - 1)
    before = position.astype(np.int64)
    share = (position - before).astype(np.float32)[:, None]
    down = np.ascontiguousarray(field.values.T)
    here, columns = down[before], down[np.minimum(before + 1, w - 1)]
    columns -= here  # in place: arrays of this size are costly to allocate
    columns *= share
    columns += here
    return first, columns
