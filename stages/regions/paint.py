"""From a signed field on a small grid to a mask at the size of the image, as runs.

A *field* is positive inside and not positive outside. A pixel belongs to the mask if the field, interpolated
bilinearly at the pixel's centre (`components.py` states the convention), is positive. Along a column of the image the
field is piecewise linear, so the places where it changes sign are solved for instead of searched among the pixels: the
cost grows with image width times grid height, and there is no array of the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import Box, cell_to_px, px_to_cell
from stages.contract.masks import encode_edges
from stages.contract.records import Rle
from stages.regions.components import Component

MOST_VALUES: Final = 1 << 18
"""Values of fields at image columns that are painted at a time: 1 MB of them, which stays in a core's cache."""


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


def paint(fields: Sequence[SignedField], sizes_hw: Sequence[tuple[int, int]]) -> list[Painted | None]:
    """The masks of fields over images of `sizes_hw` pixels, in order; None for a field without a pixel.

    Fields are painted together because the time of a small array is mostly that of the call: no mask depends on which
    others are painted with it.
    """
    painted: list[Painted | None] = []
    begin, columns, h = 0, 0.0, 0
    for index, (field, (_, width_px)) in enumerate(zip(fields, sizes_hw, strict=True)):
        own = (field.values.shape[1] + 1) * width_px / field.full_hw[1]
        columns, h = columns + own, max(h, field.values.shape[0])
        if index > begin and columns * h > MOST_VALUES:
            painted += _painted(fields[begin:index], sizes_hw[begin:index])
            begin, columns, h = index, own, field.values.shape[0]
    return painted + _painted(fields[begin:], sizes_hw[begin:]) if fields else painted


def _painted(fields: Sequence[SignedField], sizes_hw: Sequence[tuple[int, int]]) -> list[Painted | None]:
    """Like `paint`, all at once."""
    values, field_of, px = _image_columns(fields, [width_px for _, width_px in sizes_hw])
    # By field: first sample, samples of the window, samples of the whole map, and pixels of the image, down a column.
    by_field = [
        (field.top, field.values.shape[0], field.full_hw[0], height_px)
        for field, (height_px, _) in zip(fields, sizes_hw, strict=True)
    ]
    top, samples, full_h, height_px = np.array(by_field).T
    column, entering, leaving = _inside_spans(values, samples[field_of])
    owner = field_of[column]
    top, full_h, height_px = top[owner], full_h[owner], height_px[owner]
    # The pixels inside are those whose centre i + 0.5 lies strictly between entering and leaving.
    start = np.floor(cell_to_px(top + entering, side_px=height_px, cells=full_h) - 0.5) + 1
    stop = np.ceil(cell_to_px(top + leaving, side_px=height_px, cells=full_h) - 0.5)
    return _from_runs(
        owner,
        px[column],
        np.clip(start, 0, height_px).astype(np.int64),
        np.clip(stop, 0, height_px).astype(np.int64),
        sizes_hw,
    )


def _image_columns(
    fields: Sequence[SignedField], widths_px: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """The windows of fields at the centres of those image columns that they reach.

    Returns:
        Values, float32 (columns, h), those of each field next to each other, h that of the highest window and -1 below
        lower ones; the number of the field; and the image column, int64 (columns,) both.
    """
    by_field = []
    for field, width_px in zip(fields, widths_px, strict=True):
        left, w, cells = field.left, field.values.shape[1], field.full_hw[1]
        first = max(0, math.floor(cell_to_px(left - 1.0, side_px=width_px, cells=cells)))
        stop = min(width_px, math.ceil(cell_to_px(float(left + w), side_px=width_px, cells=cells)))
        by_field.append((left, w, cells, width_px, first, stop - first))
    lefts, widths, full_w, side_px, first_px, counts = np.array(by_field).T
    begin = np.cumsum(widths) - widths  # of each field among the columns of samples
    by_column = np.full((int(widths.sum()), max(field.values.shape[0] for field in fields)), -1, np.float32)
    for field, at in zip(fields, begin.tolist(), strict=True):
        h, w = field.values.shape
        by_column[at : at + w, :h] = field.values.T
    slope = np.zeros_like(by_column)
    np.subtract(by_column[1:], by_column[:-1], out=slope[:-1])
    slope[begin[1:] - 1] = 0  # a field goes on beyond its last column as it ends there

    field_of = np.repeat(np.arange(len(fields)), counts)
    px = np.arange(len(field_of)) + (first_px - np.cumsum(counts) + counts)[field_of]
    position = px_to_cell(px + 0.5, side_px=side_px[field_of], cells=full_w[field_of]) - lefts[field_of]
    position = np.clip(position, 0.0, widths[field_of] - 1.0)
    before = position.astype(np.int64)
    share = (position - before).astype(np.float32)[:, None]
    before += begin[field_of]
    values = np.take(slope, before, axis=0)
    values *= share
    values += np.take(by_column, before, axis=0)
    return values, field_of, px


def _inside_spans(
    columns: NDArray[np.float32], heights: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Where columns (n, h) are positive, going down each column in turn. Below `heights` (n,) they are not.

    Returns column, entering and leaving of each span, the latter two in samples: 0.25 is a quarter of the way from
    sample 0 to sample 1. A span that begins with sample 0 enters at -inf, one that ends with the last sample of its
    column leaves at +inf.
    """
    count, h = columns.shape
    inside = np.zeros((count, h + 2), dtype=np.bool_)
    np.greater(columns, 0, out=inside[:, 1:-1])
    flat = inside.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1])
    column = change // (h + 2)
    after = change - column * (h + 2)  # the first sample after the change
    at_top, at_end = after == 0, after == heights[column]
    row = column * h
    values = columns.ravel()
    there = values[row + np.minimum(after, h - 1)].astype(np.float64)
    here = values[row + np.maximum(after - 1, 0)].astype(np.float64)
    position = after - 1 + here / np.where(at_top | at_end, 1.0, here - there)
    position[at_top] = -np.inf
    position[at_end] = np.inf
    return column[0::2], position[0::2], position[1::2]


def _from_runs(
    owner: NDArray[np.int64],
    column: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    sizes_hw: Sequence[tuple[int, int]],
) -> list[Painted | None]:
    """The masks of the pixels start .. stop of image columns.

    Args:
        owner: (runs,), the number of the mask, rising; the runs of a mask are in the order of the columns.
        column: (runs,).
        start: (runs,), row of the first pixel.
        stop: (runs,), row after the last pixel; what does not lie behind `start` is no run.
        sizes_hw: Pixels of the image of each mask.
    """
    filled = stop > start
    if not filled.all():
        owner, column, start, stop = owner[filled], column[filled], start[filled], stop[filled]
    present, first = np.unique(owner, return_index=True)
    found: list[Painted | None] = [None] * len(sizes_hw)
    if not present.size:
        return found
    last = np.append(first[1:], len(owner)) - 1
    areas = np.add.reduceat(stop - start, first)
    left, right = column[first], column[last] + 1
    top, bottom = np.minimum.reduceat(start, first), np.maximum.reduceat(stop, first)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1).astype(np.float64).tolist()

    edges = np.stack([start, stop], axis=1)
    edges += (column * np.array([height_px for height_px, _ in sizes_hw])[owner])[:, None]
    # A run down to the lower edge continues at the upper edge of the next column, if that is of the same mask.
    touching = edges[1:, 0] == edges[:-1, 1]
    touching[last[:-1]] = False
    kept = np.ones(edges.size, np.bool_)
    kept[1:-1:2] = kept[2::2] = ~touching
    joined = np.searchsorted(np.flatnonzero(touching), [*first.tolist(), len(owner)])
    offsets = 2 * (np.append(first, len(owner)) - joined)
    codes = encode_edges(edges.ravel()[kept], offsets, [sizes_hw[mask] for mask in present.tolist()])
    for mask, code, box, area_px in zip(present.tolist(), codes, boxes, areas.tolist(), strict=True):
        found[mask] = Painted(mask=code, box_xywh_px=tuple(box), area_px=area_px)
    return found
