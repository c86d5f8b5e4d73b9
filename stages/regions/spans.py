"""Where signed fields are positive along the columns of images.

Down a column of the image a field is piecewise linear, and only where its samples differ in sign can it cross zero: the
crossings are solved for instead of searched among the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import cell_to_px, px_to_cell
from stages.regions.fields import SignedField


class Samples(NamedTuple):
    """The windows of fields as columns next to each other.

    Attributes:
        values: float32 (columns, h), h that of the highest window; -1 below lower ones.
        slope: Of the same shape, the difference to the next column. A field goes on beyond its last column as it ends.
        begin: int64 (fields,), the first column of each field.
        height: int64 (columns,), samples of the column's field.
    """

    values: NDArray[np.float32]
    slope: NDArray[np.float32]
    begin: NDArray[np.int64]
    height: NDArray[np.int64]

    @staticmethod
    def of(fields: Sequence[SignedField]) -> Samples:
        """Put the windows next to each other."""
        heights, widths = np.array([field.values.shape for field in fields]).T
        ends = np.cumsum(widths)
        begin = ends - widths
        values = np.full((int(ends[-1]), int(heights.max())), -1, np.float32)
        for field, at in zip(fields, begin.tolist(), strict=True):
            h, w = field.values.shape
            values[at : at + w, :h] = field.values.T
        slope = np.zeros_like(values)
        np.subtract(values[1:], values[:-1], out=slope[:-1])
        slope[ends - 1] = 0
        return Samples(values=values, slope=slope, begin=begin, height=np.repeat(heights, widths))

    def places(self) -> Places:
        """Where the fields may change their sign down a column, in the order of reading.

        That is between two samples which do not all have one sign, counting in those of the next column.
        """
        count, h = self.values.shape
        inside = np.zeros((count + 1, h + 2), dtype=np.bool_)
        np.greater(self.values, 0, out=inside[:-1, 1:-1])
        # Also of the first column of the next field, which adds places where nothing changes.
        some, every = inside[:-1] | inside[1:], inside[:-1] & inside[1:]
        found = np.flatnonzero((some[:, :-1] | some[:, 1:]) & ~(every[:, :-1] & every[:, 1:]))
        column = found // (h + 1)
        second = found - column * (h + 1)
        at_top, at_end = second == 0, second == self.height[column]
        pairs = []
        for sample, beyond in ((second - 1, at_top), (second, at_end)):
            at = column * h + np.clip(sample, 0, h - 1)
            values, slope = np.take(self.values, at), np.take(self.slope, at)
            values[beyond], slope[beyond] = -1, 0
            pairs.append((values, slope))
        return Places(column=column, second=second, above=pairs[0], below=pairs[1], at_top=at_top, at_end=at_end)


class Places(NamedTuple):
    """Pairs of samples, one below the other; arrays (places,).

    Attributes:
        column: Of `Samples`.
        second: The lower sample, from 0 to the samples of the field: beyond both ends nothing is inside.
        above: Value of the upper sample and its slope to the next column.
        below: The same of the lower sample.
        at_top: Whether the upper sample lies beyond the end.
        at_end: Whether the lower one does.
    """

    column: NDArray[np.int64]
    second: NDArray[np.int64]
    above: tuple[NDArray[np.float32], NDArray[np.float32]]
    below: tuple[NDArray[np.float32], NDArray[np.float32]]
    at_top: NDArray[np.bool_]
    at_end: NDArray[np.bool_]


class ImageColumns(NamedTuple):
    """Those columns of images that fields reach, int64 (columns,) each but for `share`.

    Attributes:
        px: Number of the column in its image.
        field: Number of its field.
        before: The column of `Samples` that it lies in or behind.
        share: float32, how far on the way to the next column of samples it lies.
    """

    px: NDArray[np.int64]
    field: NDArray[np.int64]
    before: NDArray[np.int64]
    share: NDArray[np.float32]


def image_columns(fields: Sequence[SignedField], widths_px: Sequence[int], begin: NDArray[np.int64]) -> ImageColumns:
    """The image columns that fields reach, field after field.

    begin: The first column of each field among `Samples`. widths_px: Of each field's image.
    """
    by_field = []
    for field, width_px in zip(fields, widths_px, strict=True):
        left, w, cells = field.left, field.values.shape[1], field.full_hw[1]
        first = max(0, math.floor(cell_to_px(left - 1.0, side_px=width_px, cells=cells)))
        stop = min(width_px, math.ceil(cell_to_px(float(left + w), side_px=width_px, cells=cells)))
        by_field.append((left, w, cells, width_px, first, stop - first))
    first_px, counts = np.array(by_field).T[4:]
    owner = np.repeat(np.arange(len(fields)), counts)
    lefts, widths, full_w, side_px = np.array(by_field).T[:4, owner]
    px = np.arange(len(owner)) + (first_px - np.cumsum(counts) + counts)[owner]
    position = np.clip(px_to_cell(px + 0.5, side_px=side_px, cells=full_w) - lefts, 0.0, widths - 1.0)
    before = position.astype(np.int64)
    return ImageColumns(px=px, field=owner, before=before + begin[owner], share=(position - before).astype(np.float32))


def inside_spans(
    samples: Samples, columns: ImageColumns
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Where the fields are positive at the centres of image columns, going down each in turn.

    The sign can change at a few places of a column only, which are looked at alone.

    Returns column, entering and leaving of each span, the latter two in samples: 0.25 is a quarter of the way from
    sample 0 to sample 1. A span that begins with sample 0 enters at -inf, one that ends with the last sample of its
    field leaves at +inf.
    """
    places = samples.places()
    counts = np.bincount(places.column, minlength=len(samples.values))
    looked_at = counts[columns.before]
    first = (np.cumsum(counts) - counts)[columns.before] - np.cumsum(looked_at) + looked_at
    place = np.arange(looked_at.sum()) + np.repeat(first, looked_at)
    share = np.repeat(columns.share, looked_at)
    here, there = (
        np.take(slope, place) * share + np.take(values, place) for values, slope in (places.above, places.below)
    )
    changes = np.flatnonzero((here > 0) != (there > 0))
    here, there, place = here[changes].astype(np.float64), there[changes].astype(np.float64), place[changes]
    position = places.second[place] - 1 + here / (here - there)
    position[places.at_top[place]] = -np.inf
    position[places.at_end[place]] = np.inf
    column = np.repeat(np.arange(len(looked_at)), looked_at)[changes]
    return column[0::2], position[0::2], position[1::2]
