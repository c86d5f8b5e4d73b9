"""From a signed field on a small grid to a mask at the size of the image, as runs.

A pixel belongs to the mask if the field, interpolated bilinearly at the pixel's centre (`components.py` states the
convention), is positive. Along the columns of the image the places where that begins and ends are known (`spans.py`):
the cost grows with image width times the length of contours, and there is no array of the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import Box, cell_to_px
from stages.contract.masks import encode_edges
from stages.contract.records import Rle
from stages.regions.fields import SignedField
from stages.regions.spans import Samples, image_columns, inside_spans

MOST_COLUMNS: Final = 1 << 14
"""Columns of images that are painted at a time: some 40 masks, whose numbers stay in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A mask at the size of the image with its half-open box and its number of pixels."""

    mask: Rle
    box_xywh_px: Box
    area_px: int


def paint(fields: Sequence[SignedField], sizes_hw: Sequence[tuple[int, int]]) -> list[Painted | None]:
    """The masks of fields over images of `sizes_hw` pixels, in order; None for a field without a pixel.

    Fields are painted together because the time of a small array is mostly that of the call: no mask depends on which
    others are painted with it.
    """
    painted: list[Painted | None] = []
    begin, columns = 0, 0.0
    for index, (field, (_, width_px)) in enumerate(zip(fields, sizes_hw, strict=True)):
        own = (field.values.shape[1] + 1) * width_px / field.full_hw[1]
        columns += own
        if index > begin and columns > MOST_COLUMNS:
            painted += _painted(fields[begin:index], sizes_hw[begin:index])
            begin, columns = index, own
    return painted + _painted(fields[begin:], sizes_hw[begin:]) if fields else painted


def _painted(fields: Sequence[SignedField], sizes_hw: Sequence[tuple[int, int]]) -> list[Painted | None]:
    """Like `paint`, all at once."""
    samples = Samples.of(fields)
    columns = image_columns(fields, [width_px for _, width_px in sizes_hw], samples.begin)
    column, entering, leaving = inside_spans(samples, columns)
    owner = columns.field[column]
    # By field: first sample, samples of the whole map, and pixels of the image, down a column.
    by_field = [
        (field.top, field.full_hw[0], height_px) for field, (height_px, _) in zip(fields, sizes_hw, strict=True)
    ]
    top, full_h, height_px = np.array(by_field).T[:, owner]
    # The pixels inside are those whose centre i + 0.5 lies strictly between entering and leaving.
    start = np.floor(cell_to_px(top + entering, side_px=height_px, cells=full_h) - 0.5) + 1
    stop = np.ceil(cell_to_px(top + leaving, side_px=height_px, cells=full_h) - 0.5)
    return _from_runs(
        owner,
        columns.px[column],
        np.clip(start, 0, height_px).astype(np.int64),
        np.clip(stop, 0, height_px).astype(np.int64),
        sizes_hw,
    )


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
