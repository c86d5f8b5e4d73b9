"""Row groups of the shards, which of their rows are samples, and masks on the grid of a model's features.

Masks come as runs of pixels down the columns. The grid needs no image-sized array: the share of a
cell is an integral over the mask, the difference of two integrals for each run: before its end
and before its start. The pixels before (x, y) are the columns left of x, and column x above y. In
each cell, the columns cover a share of its width; the part of column x covers a product of shares
of its width and height.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.pipeline.dataset.corrected import Corrections
from phrasebox.pipeline.dataset.folder import Dataset, open_shard, tables_in
from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.dataset.score_choice import RegionChoice
from phrasebox.pipeline.dataset.selection import Selector
from phrasebox.stages.contract.masks import decode_mask, run_ends
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.contract.schema import rle_of
from phrasebox.stages.contract.values import Bools, Floats32, Integers, Sides
from phrasebox.stages.files.storage import AnyPath

_ROWS_AT_ONCE: Final = 32  # Rows that decode their masks together


class LoadOptions(RegionChoice):
    """The choice of regions and samples, the same for both loaders.

    Attributes:
        keep_empty: Also take images without a chosen region.
        corrected: Leave out the regions that people deleted, and take the boxes that they drew, as
            exports do. False loads all regions as the run made them. Corrections are read once.
        on_bad_image: A bad image raises InputError, or is skipped with a warning and counted.
    """

    keep_empty: bool = False
    corrected: bool = True
    on_bad_image: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group of a shard, and its selected rows.

    Attributes:
        path: The shard.
        number: Number of the row group in the shard.
        size: Number of selected rows.
        rows: Numbers of the selected rows, int64 (size,), ascending; None for all rows.
    """

    path: AnyPath
    number: int
    size: int
    rows: Integers | None = None

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield all rows as tables of a few MB, each with the number of its first row."""
        with open_shard(self.path) as file:
            yield from tables_in(file, columns, group=self.number, threads=False)

    def stretch(self, columns: Sequence[str], first: int, last: int) -> Iterator[Any]:
        """Yield the selected rows from place `first` to `last`, exclusive, as tables; see `tables`."""
        numbers = np.arange(first, last) if self.rows is None else self.rows[first:last]
        for offset, table in self.tables(columns):
            if offset > numbers[-1]:
                break
            places = numbers[(numbers >= offset) & (numbers < offset + table.num_rows)] - offset
            if len(places):
                yield table if len(places) == table.num_rows else table.take(pa.array(places))


def row_groups_of(dataset: Dataset) -> list[RowGroup]:
    """Return all row groups that have rows, in order. Raise InputError."""
    groups = []
    for path in dataset.shards:
        with dataset.open_shard(path) as file:
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        groups += [
            RowGroup(path=path, number=number, size=size) for number, size in enumerate(sizes) if size
        ]
    return groups


def select_rows(
    groups: Iterable[RowGroup],
    options: LoadOptions,
    selector: Selector,
    corrections: Corrections | None = None,
) -> list[RowGroup]:
    """Return the row groups that have samples, with these rows selected.

    Only the columns of the choice and of the corrections are read.
    """
    columns: Sequence[str] = ("error", *selector.selection.columns)
    if corrections is not None:
        columns = corrections.columns(columns)
    groups_with_samples = []
    for group in groups:
        rows = [
            first + select_samples(table, options, selector, corrections)[1]
            for first, table in group.tables(columns)
        ]
        if len(numbers := np.concatenate(rows)):
            groups_with_samples.append(replace(group, size=len(numbers), rows=numbers))
    return groups_with_samples


def select_samples(
    table: Any, options: LoadOptions, selector: Selector, corrections: Corrections | None = None
) -> tuple[Any, Integers]:
    """Return the samples in a table of rows, as a table with their chosen regions, and their numbers in it.

    The regions are corrected before.
    """
    table = selector.choose(table) if corrections is None else corrections.correct(table).choose(selector)
    regions = pc.fill_null(pc.list_value_length(table["annotations"]), 0).to_numpy()
    is_sample = pc.is_null(table["error"]).to_numpy() & (options.keep_empty | (regions > 0))
    numbers = np.flatnonzero(is_sample)
    return (table if len(numbers) == table.num_rows else table.filter(pa.array(is_sample))), numbers


Runs = tuple[Integers, Integers]
"""Ends and starts of the runs of several masks, see `phrasebox.stages.contract.masks.run_ends`."""


def runs_of(masks: Sequence[Rle]) -> Runs:
    """Return the runs of masks of any sizes. Raise ValueError for a damaged mask."""
    if not masks:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    texts = [np.frombuffer(mask.counts.encode(), np.uint8) for mask in masks]
    pixels = np.array([mask.size_hw for mask in masks], np.int64).prod(axis=1)
    return run_ends(np.concatenate(texts), np.cumsum([0, *map(len, texts)]), pixels)


def add_runs(rows: Sequence[Row]) -> None:
    """Add the runs of its masks to each row as `runs`. Raise ValueError for a damaged mask.

    Masks of `_ROWS_AT_ONCE` rows are decoded together: fewer are slower, more take too much memory.
    """
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        ends, starts = runs_of([rle_of(region) for row in part for region in row["annotations"] or ()])
        for row in part:
            count = len(row["annotations"] or ())
            row_starts = starts[: count + 1]
            starts = starts[count:]
            row["runs"] = ends[row_starts[0] : row_starts[-1]], row_starts - row_starts[0]


def grid_shares(ends: Integers, starts: Integers, size_hw: Sides, grid_hw: Sides) -> Floats32:
    """Return the share of each cell inside each mask, float32 (masks, grid_h, grid_w), exact to about 1e-5.

    `ends` and `starts` are the runs of one image's masks, see `phrasebox.stages.contract.masks.run_ends`;
    sizes are in px. Where the edge of a cell crosses a pixel, each side counts its part.
    """
    shares = np.empty((len(starts) - 1, *grid_hw), np.float32)
    if not len(shares):
        return shares
    left_shares, column_shares, above_shares = _tables(size_hw, grid_hw)
    x, y = np.divmod(ends, size_hw[0])
    for number in range(len(shares)):
        # Ends of runs alternate: the inside begins, the inside ends. An odd last one is the end
        # of the image.
        first = starts[number]
        last = starts[number + 1] - (starts[number + 1] - starts[number]) % 2
        x0 = x[first:last:2]
        y0 = y[first:last:2]
        x1 = x[first + 1 : last : 2]
        y1 = y[first + 1 : last : 2]
        heights = above_shares.take(y1, axis=0)
        heights -= above_shares.take(y0, axis=0)
        shares[number] = heights.T @ column_shares.take(x0, axis=0)
        crossing_runs = np.flatnonzero(x0 != x1)
        if len(crossing_runs):  # few runs do, in most masks
            x0 = x0[crossing_runs]
            x1 = x1[crossing_runs]
            y1 = y1[crossing_runs]
            widths = column_shares.take(x1, axis=0) - column_shares.take(x0, axis=0)
            shares[number] += above_shares.take(y1, axis=0).T @ widths
            shares[number] += (left_shares.take(x1, axis=0) - left_shares.take(x0, axis=0)).sum(axis=0)
    return shares.clip(0, 1, out=shares)


def masks_of(regions: Sequence[Annotation], size_hw: Sides, target_hw: Sides) -> Bools:
    """Return the masks of regions as pixels, bool (regions, height, width).

    They are resized to `target_hw`; each pixel takes the value at its centre. Raise ValueError for
    a damaged mask.
    """
    masks = np.zeros((len(regions), *target_hw), np.bool_)
    sides = zip(target_hw, size_hw, strict=True)
    y, x = (((np.arange(n) + 0.5) * side / n).astype(np.int64) for n, side in sides)
    for mask, region in zip(masks, regions, strict=True):
        pixels = decode_mask(rle_of(region))
        mask[:] = pixels if target_hw == size_hw else pixels[np.ix_(y, x)]
    return masks


@lru_cache(maxsize=64)
def _tables(size_hw: Sides, grid_hw: Sides) -> tuple[Floats32, ...]:
    """Shares of grid columns and rows, as three tables.

    For each x: the share of every grid column left of x (w + 1, grid_w), and the share that pixel
    column x covers, of the same shape. For each y: the share of every grid row above y (h,
    grid_h).
    """
    h, w = size_hw
    grid_h, grid_w = grid_hw
    left_shares = (np.arange(w + 1)[:, None] * (grid_w / w) - np.arange(grid_w)).clip(0, 1)
    column_shares = np.concatenate([np.diff(left_shares, axis=0), np.zeros((1, grid_w))])
    above_shares = (np.arange(h)[:, None] * (grid_h / h) - np.arange(grid_h)).clip(0, 1)
    return (
        left_shares.astype(np.float32),
        column_shares.astype(np.float32),
        above_shares.astype(np.float32),
    )
