"""Row groups of the shards: which of them can hold samples, and their rows as plain arrays and lists.

Parquet stores the number of nulls and the largest value of each column of a row group. Before any row is read, they
show where all rows failed, where no row has a region, and where no score reaches the minimum. (Filters of
pyarrow.dataset do not reach into lists, where the scores are.)

Masks come as runs of pixels down the columns, and become pixels, or shares of the cells of a feature grid. The grid
needs no image-sized array: the share of a cell is an integral over the mask, so what lies before each run's end minus
what lies before its start. Before a pixel (x, y) lie the columns left of x, and column x above y. In each cell, the
columns cover a share of its width, and the part of column x a product of shares of its width and height.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset, open_shard, tables_in
from pipeline.dataset.selection import REGION, Selector
from stages.contract.errors import InputError, SchemaError
from stages.contract.masks import run_ends
from stages.shared.storage import AnyPath

_SCORE: Final = f"{REGION}score"
_MASKS_AT_ONCE: Final = 512  # decoded together: all those of a row group would take hundreds of MB


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The choice of samples, the same for both loaders.

    `on_bad_image` says whether a bad image raises InputError, or is skipped with a warning and counted.
    """

    min_score: float = 0.0  # only regions with at least this score; row groups without any are not read
    where: str = ""  # SQL condition on regions, see `pipeline.dataset.selection`
    keep_empty: bool = False  # also images without a chosen region
    keep_failed: bool = False  # also rows with an error, which have neither regions nor an image; without images only
    on_bad_image: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group of a shard, and those of its rows that count."""

    path: AnyPath
    number: int  # in the shard
    size: int  # how many rows count
    rows: NDArray[np.int64] | None = None  # numbers of those, ascending; None before samples are counted: all

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield all rows as tables of a few MB, each with the number of its first row."""
        with open_shard(self.path) as file:
            yield from tables_in(file, columns, group=self.number, threads=False)

    def stretch(self, columns: Sequence[str], first: int, last: int) -> Iterator[Any]:
        """Yield the rows that count from the `first` to the `last`, as tables; see `tables`."""
        wanted = np.arange(first, last) if self.rows is None else self.rows[first:last]
        for offset, table in self.tables(columns):
            if offset > wanted[-1]:
                break
            inside = wanted[(wanted >= offset) & (wanted < offset + table.num_rows)] - offset
            if len(inside):
                yield table if len(inside) == table.num_rows else table.take(pa.array(inside))


def row_groups_of(dataset: Dataset, options: LoadOptions) -> tuple[list[RowGroup], int]:
    """Return the row groups that may hold samples, in order, and how many others there are. Raise InputError."""
    found, skipped = [], 0
    for path in dataset.shards:
        with open_shard(path) as file:
            metadata = file.metadata
            numbers = {metadata.schema.column(number).path: number for number in range(metadata.num_columns)}
            if not numbers.keys() >= {"error", _SCORE}:
                raise InputError(f"{path} is not a shard of a dataset: it lacks the columns error or annotations")
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                errors, scores = group.column(numbers["error"]), group.column(numbers[_SCORE])
                if group.num_rows and _may_hold(errors, scores, group.num_rows, options):
                    found.append(RowGroup(path=path, number=number, size=group.num_rows))
                else:
                    skipped += 1
    return found, skipped


def _may_hold(errors: Any, scores: Any, rows: int, options: LoadOptions) -> bool:
    error, score = errors.statistics, scores.statistics
    sound = error.null_count if error is not None and error.has_null_count else None
    if sound == 0 and not options.keep_failed:
        return False
    if options.keep_empty or (options.keep_failed and sound != rows) or score is None:
        return True
    # A row without regions counts as a null.
    if score.has_null_count and score.null_count == scores.num_values:
        return False
    # In the precision of the column: 0.8 is another number in float32.
    return not score.has_min_max or bool(score.max >= np.float32(options.min_score))


def counted(groups: Iterable[RowGroup], options: LoadOptions, selector: Selector) -> list[RowGroup]:
    """Return the row groups that have samples, with their numbers. Reads what the choice needs."""
    columns = ("error", *selector.selection.columns)
    found = []
    for group in groups:
        rows = [first + samples_of(table, options, selector)[1] for first, table in group.tables(columns)]
        if len(kept := np.concatenate(rows)):
            found.append(replace(group, size=len(kept), rows=kept))
    return found


def samples_of(table: Any, options: LoadOptions, selector: Selector) -> tuple[Any, NDArray[np.int64]]:
    """Return the rows of a table that are samples, with their chosen regions, and their numbers in the table."""
    table = selector.choose(table)
    failed = pc.is_valid(table["error"]).to_numpy()
    regions = pc.fill_null(pc.list_value_length(table["annotations"]), 0).to_numpy()
    kept = np.where(failed, options.keep_failed, options.keep_empty | (regions > 0))
    numbers = np.flatnonzero(kept)
    return (table if len(numbers) == table.num_rows else table.filter(pa.array(kept))), numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows of a table and their regions as arrays; going through Python objects would cost a hundred times as much.

    `run_ends` and `run_starts` are those of `stages.contract.masks.run_ends`; empty if the masks were not read.
    """

    rows: dict[str, list[Any]]  # column of the dataset -> its values
    size_wh: NDArray[np.int64]  # (rows, 2), px
    starts: NDArray[np.int64]  # (rows + 1,): a row's regions are those from `starts[row]` to `starts[row + 1]`
    regions: dict[str, Any]  # name in a sample, see `sample.py` -> values of all regions; boxes in the original's px
    run_ends: NDArray[np.int64]
    run_starts: NDArray[np.int64]
    images: list[bytes | None]  # encoded; None for a row that holds none; a reader may take them out

    def __len__(self) -> int:
        return len(self.images)


def block_of(table: Any) -> RowBlock:
    """Return the rows of a table. Raise SchemaError for values that the dataset contract does not allow."""
    annotations = table["annotations"].combine_chunks()
    counts = annotations.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    regions = annotations.flatten()
    fields = {name: regions.field(name) for name in (entry.name for entry in regions.type)}
    columns = {name: table[name].combine_chunks() for name in table.column_names if name != "annotations"}
    try:
        ends, run_starts = _runs(fields.get("segmentation"))
        boxes = _rows_of(fields["bbox"], 4, np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return RowBlock(
            rows={name: column.to_pylist() for name, column in columns.items() if name != "image"},
            size_wh=np.stack([_numbers(columns[name], np.int64) for name in ("width", "height")], axis=1),
            starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            regions={
                "boxes_xyxy_px": boxes,
                "phrases": fields["phrase"].to_pylist(),
                "heads": fields["head"].to_pylist(),
                "spans": _rows_of(fields["span"], 2, np.int64),
                "caption_indices": _numbers(fields["caption_index"], np.int64),
                "scores": _numbers(fields["score"], np.float32),
                "similarities": _numbers(fields["similarity"], np.float32),
                "region_ids": _numbers(fields["id"], np.int64),
            },
            run_ends=ends,
            run_starts=run_starts,
            images=columns["image"].field("bytes").to_pylist() if "image" in columns else [None] * table.num_rows,
        )
    except ValueError as error:
        raise SchemaError(f"rows {columns['id'][0]} to {columns['id'][-1]}: {error}") from error


def _numbers(column: Any, kind: Any) -> NDArray[Any]:
    """Return the values in memory of their own: torch accepts only writable arrays."""
    if column.null_count:
        raise ValueError(f"{column.null_count} values are missing")
    return np.array(column.to_numpy(zero_copy_only=False), dtype=kind)


def _rows_of(column: Any, width: int, kind: Any) -> NDArray[Any]:
    """Return the values (n, width) of lists of `width` values."""
    values = _numbers(column.flatten(), kind)
    lengths = column.value_lengths()
    if lengths.null_count or not (lengths.to_numpy() == width).all():
        raise ValueError(f"expected lists of {width} values")
    return values.reshape(-1, width)


def _runs(segmentation: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if segmentation is None or not len(segmentation):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    counts = segmentation.field("counts")
    if counts.null_count:
        raise ValueError(f"{counts.null_count} masks are missing")
    _, offsets_buffer, text_buffer = counts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[counts.offset : counts.offset + len(counts) + 1].astype(np.int64)
    text, pixels = np.frombuffer(text_buffer, np.uint8), _rows_of(segmentation.field("size"), 2, np.int64).prod(axis=1)
    ends, starts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for first in range(0, len(pixels), _MASKS_AT_ONCE):
        own = offsets[first : first + _MASKS_AT_ONCE + 1]
        found, places = run_ends(text[own[0] : own[-1]], own - own[0], pixels[first : first + _MASKS_AT_ONCE])
        ends.append(found)
        starts.append(places[1:] + starts[-1][-1])
    return np.concatenate(ends), np.concatenate(starts)


def grid_shares(
    ends: NDArray[np.int64], starts: NDArray[np.int64], size_hw: tuple[int, int], grid_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the share of each cell that is inside, float32 (masks, grid_h, grid_w), exact to about 1e-5.

    `ends` and `starts` are the runs of one image's masks, see `stages.contract.masks.run_ends`; sizes are in px. Edges
    of cells may lie within pixels, which then count in parts.
    """
    shares = np.empty((len(starts) - 1, *grid_hw), np.float32)
    if not len(shares):
        return shares
    left, at, above = _tables(size_hw, grid_hw)
    x, y = np.divmod(ends, size_hw[0])
    for number in range(len(shares)):
        # Ends of runs alternate: the inside begins, the inside ends. An odd last one is the end of the image.
        first, last = starts[number], starts[number + 1] - (starts[number + 1] - starts[number]) % 2
        x0, y0, x1, y1 = x[first:last:2], y[first:last:2], x[first + 1 : last : 2], y[first + 1 : last : 2]
        heights = above.take(y1, axis=0)
        heights -= above.take(y0, axis=0)
        shares[number] = heights.T @ at.take(x0, axis=0)
        crossing = np.flatnonzero(x0 != x1)
        if len(crossing):  # few runs do, in most masks
            x0, x1, y1 = x0[crossing], x1[crossing], y1[crossing]
            shares[number] += above.take(y1, axis=0).T @ (at.take(x1, axis=0) - at.take(x0, axis=0))
            shares[number] += (left.take(x1, axis=0) - left.take(x0, axis=0)).sum(axis=0)
    return shares.clip(0, 1, out=shares)


def full_masks(
    ends: NDArray[np.int64], starts: NDArray[np.int64], size_hw: tuple[int, int], wanted_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return masks, see `grid_shares`, as pixels: bool (masks, height, width).

    They are stretched to the size `wanted_hw`; each pixel takes the value at its centre.
    """
    (h, w), number = size_hw, len(starts) - 1
    if not number:
        return np.zeros((0, *wanted_hw), np.bool_)
    lengths = np.diff(ends, prepend=0)
    lengths[starts[1:-1]] = ends[starts[1:-1]]
    inside = (np.arange(len(ends)) - np.repeat(starts[:-1], np.diff(starts))) % 2 == 1
    columns = np.repeat(inside, lengths).reshape(number, w, h)
    if wanted_hw != size_hw:
        y, x = (((np.arange(n) + 0.5) * side / n).astype(np.int64) for n, side in zip(wanted_hw, size_hw, strict=True))
        columns = columns[:, x][:, :, y]
    return np.ascontiguousarray(columns.transpose(0, 2, 1))


@lru_cache(maxsize=64)
def _tables(size_hw: tuple[int, int], grid_hw: tuple[int, int]) -> tuple[NDArray[np.float32], ...]:
    """For each x, the share of every grid column left of it (w + 1, grid_w), and that which pixel column x covers; for
    each y, the share of every grid row above it (h, grid_h).
    """
    (h, w), (grid_h, grid_w) = size_hw, grid_hw
    left = (np.arange(w + 1)[:, None] * (grid_w / w) - np.arange(grid_w)).clip(0, 1)
    at = np.concatenate([np.diff(left, axis=0), np.zeros((1, grid_w))])
    above = (np.arange(h)[:, None] * (grid_h / h) - np.arange(grid_h)).clip(0, 1)
    return left.astype(np.float32), at.astype(np.float32), above.astype(np.float32)
