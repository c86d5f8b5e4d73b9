"""From a signed field on a small grid to a mask at the size of the image, as runs.

A *field* is positive inside and not positive outside. A pixel belongs to the mask if the field, interpolated
bilinearly at the pixel's centre (`components.py` states the convention), is positive. Along a column of the image the
field is piecewise linear, so the places where it changes sign are solved for instead of searched among the pixels: the
cost grows with image width times grid height, and there is no array of the size of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import Box, cell_to_px, px_to_cell
from stages.contract.masks import encode_runs
from stages.contract.records import Rle
from stages.regions.components import Component


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A mask at the size of the image with its half-open box and its number of pixels."""

    mask: Rle
    box_xywh_px: Box
    area_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedField:
    """A field over the whole image, of which only a window is stored: elsewhere it is not positive.

    Attributes:
        values: float32 (h, w), finite; not positive along those sides of the window that lie within the image.
        top: Where the window begins, in samples, as `left`.
        left: See `top`.
        full_hw: Samples over the whole image.
    """

    values: NDArray[np.float32]
    top: int
    left: int
    full_hw: tuple[int, int]


def component_field(fine: NDArray[np.float32], threshold: float, part: Component) -> SignedField:
    """The field whose sign is the component and whose size is the distance of the map from the threshold.

    Where the component is just `fine > threshold`, the field is `fine - threshold` and the mask's outline is the exact
    contour of the map. Where cleaning added or removed samples, or where another component begins, the outline runs
    between the samples. The fields of two components are never positive at the same point, so their masks do not
    overlap.

    fine: float32 (fine_h, fine_w), same unit as `threshold`.
    """
    distance = np.abs(fine[_around(part)] - np.float32(threshold))
    # a sample on the threshold has a side, too
    return _signed(part, np.maximum(distance, np.float32(1e-3)), (fine.shape[0], fine.shape[1]))


def flat_field(part: Component, fine_hw: tuple[int, int]) -> SignedField:
    """The field of +1 inside the component and -1 outside: its outline runs halfway between the samples.

    fine_hw: Samples of the whole map.
    """
    rows, columns = _around(part)
    size_hw = (min(rows.stop, fine_hw[0]) - rows.start, min(columns.stop, fine_hw[1]) - columns.start)
    return _signed(part, np.ones(size_hw, dtype=np.float32), fine_hw)


def _around(part: Component) -> tuple[slice, slice]:
    """The part's box and one sample more on each side: a contour lies between a positive and a negative sample."""
    h, w = part.inside.shape
    return slice(max(0, part.top - 1), part.top + h + 1), slice(max(0, part.left - 1), part.left + w + 1)


def _signed(part: Component, values: NDArray[np.float32], full_hw: tuple[int, int]) -> SignedField:
    """The field with these magnitudes (h, w) in the window around a part."""
    h, w = part.inside.shape
    rows, columns = _around(part)
    outside = np.ones(values.shape, dtype=np.bool_)
    row, column = part.top - rows.start, part.left - columns.start
    np.logical_not(part.inside, out=outside[row : row + h, column : column + w])
    np.negative(values, out=values, where=outside)
    return SignedField(values=values, top=rows.start, left=columns.start, full_hw=full_hw)


def paint(field: SignedField, size_hw: tuple[int, int]) -> Painted | None:
    """The mask of a field over an image of `size_hw` pixels; None if it has no pixel."""
    height_px, width_px = size_hw
    full_h, full_w = field.full_hw
    right = field.left + field.values.shape[1]
    first_px = max(0, math.floor(cell_to_px(field.left - 1.0, side_px=width_px, cells=full_w)))
    stop_px = min(width_px, math.ceil(cell_to_px(float(right), side_px=width_px, cells=full_w)))
    column, entering, leaving = _inside_spans(_image_columns(field, first_px, stop_px, width_px))
    # The pixels inside are those whose centre i + 0.5 lies strictly between entering and leaving.
    start = np.floor(cell_to_px(field.top + entering, side_px=height_px, cells=full_h) - 0.5) + 1
    stop = np.ceil(cell_to_px(field.top + leaving, side_px=height_px, cells=full_h) - 0.5)
    return _from_runs(
        column + first_px,
        np.clip(start, 0, height_px).astype(np.int64),
        np.clip(stop, 0, height_px).astype(np.int64),
        size_hw,
    )


def _image_columns(field: SignedField, first_px: int, stop_px: int, width_px: int) -> NDArray[np.float32]:
    """The field's window at the centres of image columns first .. stop: float32 (stop - first, h)."""
    w = field.values.shape[1]
    centres_px = np.arange(first_px, stop_px, dtype=np.float64) + 0.5
    position = px_to_cell(centres_px, side_px=width_px, cells=field.full_hw[1]) - field.left
    position = np.clip(position, 0.0, w - 1.0)
    left = position.astype(np.int64)
    share = (position - left).astype(np.float32)[:, None]
    by_column = np.ascontiguousarray(field.values.T)
    slope = np.diff(by_column, axis=0, append=by_column[-1:])
    columns = slope[left]
    columns *= share
    columns += by_column[left]
    return columns


def _inside_spans(
    columns: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Where columns (n, h) are positive, going down each column in turn.

    Returns column, entering and leaving of each span, the latter two in samples: 0.25 is a quarter of the way from
    sample 0 to sample 1. A span that begins with sample 0 enters at -inf, one that ends with sample h - 1 leaves at
    +inf.
    """
    count, h = columns.shape
    inside = np.zeros((count, h + 2), dtype=np.bool_)
    np.greater(columns, 0, out=inside[:, 1:-1])
    flat = inside.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1])
    column, after = np.divmod(change, h + 2)  # `after`: the first sample after the change
    there = columns[column, np.minimum(after, h - 1)].astype(np.float64)
    here = columns[column, np.maximum(after - 1, 0)].astype(np.float64)
    at_border = (after == 0) | (after == h)
    span = np.where(at_border, 1.0, here - there)
    position = after - 1 + here / span
    position[after == 0] = -np.inf
    position[after == h] = np.inf
    return column[0::2], position[0::2], position[1::2]


def _from_runs(
    column: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64], size_hw: tuple[int, int]
) -> Painted | None:
    """The mask of the pixels start .. stop of image columns, in the order of the columns; None if it is empty."""
    height_px, width_px = size_hw
    filled = stop > start
    if not filled.all():
        column, start, stop = column[filled], start[filled], stop[filled]
    if not column.size:
        return None
    x, y = int(column[0]), int(start.min())
    box = (float(x), float(y), float(int(column[-1]) + 1 - x), float(int(stop.max()) - y))

    # Edge k of the column-by-column sequence of pixels is where a run begins (odd k) or ends.
    edges = np.zeros(2 * column.size + 2, dtype=np.int64)
    edges[1:-1:2] = start + column * height_px
    edges[2:-1:2] = stop + column * height_px
    edges[-1] = height_px * width_px
    # A run down to the lower edge continues at the upper edge of the next column.
    touching = np.flatnonzero(edges[2:-2:2] == edges[3:-1:2])
    if touching.size:
        edges = np.delete(edges, np.concatenate([2 * touching + 2, 2 * touching + 3]))
    counts = edges[1:] - edges[:-1]
    if counts[-1] == 0:
        counts = counts[:-1]
    return Painted(
        mask=encode_runs(counts.astype(np.uint32), size_hw),
        box_xywh_px=box,
        area_px=int((stop - start).sum()),
    )
