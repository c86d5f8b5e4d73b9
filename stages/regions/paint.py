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
from typing import Final, NamedTuple

import cv2
import numpy as np

from phrasebox.stages.contract.geometry import Box, cell_to_px, xyxy_to_xywh
from phrasebox.stages.contract.masks import encode_edges
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.contract.values import Floats, Integers, Plane, Sides
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
    columns = columns_of(field, width_px)
    if columns is None:
        return None
    runs = runs_of(crossings(columns), height_px=height_px, cells=len(field))
    column, start, stop = runs
    if not column.size:
        return None
    return RegionMask(
        mask=encode_edges(join_across_columns(runs, height_px), size_hw),
        box_xywh_px=xyxy_to_xywh(
            (float(column[0]), float(start.min()), float(column[-1] + 1), float(stop.max()))
        ),
        area_px=int((stop - start).sum()),
    )


class FieldColumns(NamedTuple):
    """A field down those columns of the image that may hold a pixel of the mask.

    Attributes:
        values: float32 (columns, samples), from the upper sample down. The first and the last
            sample are outside.
        first_column: The column of the image that comes first.
        first_row: Row of the field that the first sample of a column stands for; -1 is above the field.
    """

    values: Plane
    first_column: int
    first_row: int


def columns_of(field: Plane, width_px: int) -> FieldColumns | None:
    """Interpolate a field (fine_h, fine_w) at columns of an image; None if the field is nowhere positive."""
    fine_h, fine_w = field.shape
    left, top, w, h = cv2.boundingRect((field > 0).view(np.uint8))
    if not w:
        return None
    # One sample more on each side: a contour lies between a positive and a negative sample.
    bottom = min(fine_h, top + h + 1)
    top = max(0, top - 1)
    first_column = max(0, math.floor(cell_to_px(left - 1.0, side_px=width_px, cells=fine_w)))
    stop = min(width_px, math.ceil(cell_to_px(float(left + w), side_px=width_px, cells=fine_w)))
    padded = np.full((fine_w, bottom - top + 2), -1.0, np.float32)
    padded[:, 1:-1] = field[top:bottom].T
    values = cv2.resize(padded, (padded.shape[1], width_px), interpolation=cv2.INTER_LINEAR)
    return FieldColumns(values[first_column:stop], first_column, top - 1)


class Crossings(NamedTuple):
    """The stretches of columns where a field is positive, column after column from the left, each from the top down.

    Attributes:
        column: (n,), in the image.
        rows: (n, 2), where the stretch is entered and left, in rows of the field and parts of
            them; -inf and inf at the upper and the lower edge of the image.
    """

    column: Integers
    rows: Floats


def crossings(columns: FieldColumns) -> Crossings:
    """Find where a field is zero down its columns."""
    samples = columns.values.shape[1]
    values = columns.values.ravel()
    inside = values > 0
    # Every column begins and ends outside: it is entered and left by turns.
    before = np.flatnonzero(inside[1:] != inside[:-1])
    column, sample = np.divmod(before, samples)
    value = values[before].astype(np.float64)
    rows = columns.first_row + sample + value / (value - values[before + 1])
    # What is inside at the first or last sample of the image goes on to the edge of the image.
    rows[sample == 0] = -np.inf
    rows[sample == samples - 2] = np.inf
    return Crossings(column[0::2] + columns.first_column, rows.reshape(-1, 2))


class Runs(NamedTuple):
    """Runs of pixels down the columns of an image, column after column from the left, each from the top down.

    Attributes:
        column: (n,).
        start, stop: (n,), rows, half open: no run is empty.
    """

    column: Integers
    start: Integers
    stop: Integers


def runs_of(stretches: Crossings, *, height_px: int, cells: int) -> Runs:
    """Return the pixels whose centres lie in stretches of a field with `cells` rows over `height_px` pixels."""
    entering, leaving = (cell_to_px(stretches.rows, side_px=height_px, cells=cells) - 0.5).T
    # The centre i + 0.5 of a pixel inside lies strictly between entering and leaving.
    start = np.maximum(np.floor(entering) + 1, 0).astype(np.int64)
    stop = np.minimum(np.ceil(leaving), height_px).astype(np.int64)
    is_filled = stop > start
    return Runs(stretches.column[is_filled], start[is_filled], stop[is_filled])


def join_across_columns(runs: Runs, height_px: int) -> Integers:
    """Return the edges of runs as `encode_edges` wants them, pixels down all columns.

    A run down to the lower edge and one from the upper edge of the next column become one.
    """
    ends = np.array([runs.start, runs.stop]) + runs.column * height_px
    is_joined = ends[0, 1:] == ends[1, :-1]
    edges = ends.T.ravel()
    if is_joined.any():
        edges = np.concatenate([edges[:1], edges[1:-1][np.repeat(~is_joined, 2)], edges[-1:]])
    return edges
