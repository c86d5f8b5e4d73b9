"""Row groups of the shards: which of them can hold samples, and their rows as plain arrays and lists.

Parquet stores the number of nulls and the largest value of each column of a row group. They tell, before any row is
read, where all rows failed, where no row has a region, and where no score reaches the minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset, open_dataset, open_shard, tables_in
from pipeline.dataset.selection import REGION, Selection, Selector
from stages.contract.errors import InputError, SchemaError
from stages.contract.masks import run_ends
from stages.shared.storage import AnyPath

_SCORE: Final = f"{REGION}score"

_MASKS_AT_ONCE: Final = 64
"""Masks whose run lengths are decoded together. They fit the processor's cache: a quarter faster than all at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows are samples, and which of their regions they have.

    Attributes:
        selection: The regions.
        keep_empty: Also rows without a chosen region.
        keep_failed: Also rows with an error, which have neither regions nor an image.
    """

    selection: Selection
    keep_empty: bool = False
    keep_failed: bool = False


def opened(
    dataset: Dataset | AnyPath | str, min_score: float, where: str, *, keep_empty: bool, keep_failed: bool
) -> tuple[Dataset, Choice]:
    """What both loaders ask first: the dataset, opened if need be, and the choice, with the marks for a condition.

    Raises:
        ConfigError: The score or the condition is invalid; the workers would only find out later.
        InputError: There is no dataset, or its marks are damaged.
    """
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    selection = dataset.selection(where, min_score=min_score)
    Selector(selection)
    return dataset, Choice(selection=selection, keep_empty=keep_empty, keep_failed=keep_failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group of a shard.

    Attributes:
        path: The shard.
        number: Of the row group in the shard.
        size: How many rows count.
        rows: Numbers in the row group of the rows that are samples, ascending; None before they are counted, when
            all rows count.
    """

    path: AnyPath
    number: int
    size: int
    rows: NDArray[np.int64] | None = None

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Gives all rows as tables of at most a few MB, each with the number of its first row.

        Single-threaded: Arrow's threads do not survive a fork, and DataLoader runs a worker for each core anyway.

        Args:
            columns: Paths of leaf columns.

        Raises:
            InputError: The shard is damaged.
        """
        with open_shard(self.path) as file:
            yield from tables_in(file, columns, group=self.number, threads=False)

    def stretch(self, columns: Sequence[str], first: int, last: int) -> Iterator[Any]:
        """Gives the rows that count from the `first` to the `last`, as tables; see `tables`."""
        wanted = np.arange(first, last) if self.rows is None else self.rows[first:last]
        for offset, table in self.tables(columns):
            if offset > wanted[-1]:
                break
            inside = wanted[(wanted >= offset) & (wanted < offset + table.num_rows)] - offset
            if len(inside):
                yield table if len(inside) == table.num_rows else table.take(pa.array(inside))


def row_groups_of(dataset: Dataset, choice: Choice) -> tuple[list[RowGroup], int]:
    """The row groups that may hold samples, in order, and how many others there are.

    Raises:
        InputError: A shard is damaged.
    """
    found, skipped = [], 0
    for path in dataset.shards:
        with open_shard(path) as file:
            metadata = file.metadata
            names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
            numbers = {name: names.index(name) for name in ("error", _SCORE) if name in names}
            if len(numbers) != 2:
                raise InputError(f"{path} is not a shard of a dataset: it lacks the columns error or annotations")
            for number in range(metadata.num_row_groups):
                described = metadata.row_group(number)
                columns = {name: described.column(column) for name, column in numbers.items()}
                if described.num_rows and _may_hold(columns, described.num_rows, choice):
                    found.append(RowGroup(path=path, number=number, size=described.num_rows))
                else:
                    skipped += 1
    return found, skipped


def _may_hold(columns: dict[str, Any], rows: int, choice: Choice) -> bool:
    errors, scores = columns["error"].statistics, columns[_SCORE].statistics
    sound = errors.null_count if errors is not None and errors.has_null_count else None
    if sound == 0 and not choice.keep_failed:
        return False
    if choice.keep_empty or (choice.keep_failed and sound != rows) or scores is None:
        return True
    # A row without regions counts as a null.
    if scores.has_null_count and scores.null_count == columns[_SCORE].num_values:
        return False
    # In the precision of the column: 0.8 is another number in float32.
    return not scores.has_min_max or bool(scores.max >= np.float32(choice.selection.min_score))


def counted(groups: Iterable[RowGroup], choice: Choice, selector: Selector) -> list[RowGroup]:
    """The row groups with the numbers of their samples, without those that have none. Reads what the choice needs."""
    columns = ("error", *choice.selection.columns)
    found = []
    for group in groups:
        rows = [first + samples_of(table, choice, selector)[1] for first, table in group.tables(columns)]
        kept = np.concatenate(rows)
        if len(kept):
            found.append(RowGroup(path=group.path, number=group.number, size=len(kept), rows=kept))
    return found


def samples_of(table: Any, choice: Choice, selector: Selector) -> tuple[Any, NDArray[np.int64]]:
    """The rows of a table that are samples, with their chosen regions, and their numbers in the table."""
    table = selector.choose(table)
    failed = pc.is_valid(table["error"]).to_numpy()
    regions = pc.fill_null(pc.list_value_length(table["annotations"]), 0).to_numpy()
    kept = np.where(failed, choice.keep_failed, choice.keep_empty | (regions > 0))
    numbers = np.flatnonzero(kept)
    return (table if len(numbers) == table.num_rows else table.filter(pa.array(kept))), numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows of a table and their regions as arrays; going through Python objects would cost a hundred times as much.

    Attributes:
        ids, sample_ids, file_names, captions, size_wh, errors, error_details: Of the rows.
        starts: int64 (rows + 1,); a row's regions are those from `starts[row]` to `starts[row + 1]`.
        boxes_xyxy_px: float32 (regions, 4), pixels of the original image.
        spans: int64 (regions, 2), half open, characters of the caption.
        region_ids, caption_indices, scores, similarities, phrases, heads: Of the regions.
        run_ends, run_starts: See `stages.contract.masks.run_ends`; empty if the masks were not read.
        images: Encoded, None for a row that holds none; a reader may take them out.
    """

    ids: NDArray[np.int64]
    sample_ids: list[str]
    file_names: list[str]
    captions: list[list[str]]
    size_wh: NDArray[np.int64]
    errors: list[str | None]
    error_details: list[str | None]
    starts: NDArray[np.int64]
    region_ids: NDArray[np.int64]
    boxes_xyxy_px: NDArray[np.float32]
    spans: NDArray[np.int64]
    caption_indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    similarities: NDArray[np.float32]
    phrases: list[str]
    heads: list[str]
    run_ends: NDArray[np.int64]
    run_starts: NDArray[np.int64]
    images: list[bytes | None]

    def __len__(self) -> int:
        return len(self.ids)


def block_of(table: Any) -> RowBlock:
    """The rows of a table. Raises SchemaError for values that the dataset contract does not allow."""
    annotations = table["annotations"].combine_chunks()
    counts = annotations.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    regions = annotations.flatten()
    fields = {name: regions.field(name) for name in (entry.name for entry in regions.type)}
    rows = {name: table[name].combine_chunks() for name in table.column_names if name != "annotations"}
    try:
        nothing = np.zeros(0, np.int64)
        runs = _runs(fields["segmentation"]) if "segmentation" in fields else (nothing, nothing)
        return RowBlock(
            ids=_numbers(rows["id"], np.int64),
            sample_ids=rows["sample_id"].to_pylist(),
            file_names=rows["file_name"].to_pylist(),
            captions=rows["captions"].to_pylist(),
            size_wh=np.stack([_numbers(rows[name], np.int64) for name in ("width", "height")], axis=1),
            errors=rows["error"].to_pylist(),
            error_details=rows["error_detail"].to_pylist(),
            starts=starts,
            region_ids=_numbers(fields["id"], np.int64),
            boxes_xyxy_px=_corners(_rows_of(fields["bbox"], 4, np.float32)),
            spans=_rows_of(fields["span"], 2, np.int64),
            caption_indices=_numbers(fields["caption_index"], np.int64),
            scores=_numbers(fields["score"], np.float32),
            similarities=_numbers(fields["similarity"], np.float32),
            phrases=fields["phrase"].to_pylist(),
            heads=fields["head"].to_pylist(),
            run_ends=runs[0],
            run_starts=runs[1],
            images=_images(rows.get("image"), len(starts) - 1),
        )
    except ValueError as error:
        raise SchemaError(f"rows {rows['id'][0]} to {rows['id'][-1]}: {error}") from error


def _numbers(column: Any, kind: Any) -> NDArray[Any]:
    """The values in memory of their own: torch accepts only writable arrays."""
    if column.null_count:
        raise ValueError(f"{column.null_count} values are missing")
    return np.array(column.to_numpy(zero_copy_only=False), dtype=kind)


def _rows_of(column: Any, width: int, kind: Any) -> NDArray[Any]:
    """The values (n, width) of lists of `width` values."""
    values = _numbers(column.flatten(), kind)
    lengths = column.value_lengths()
    if lengths.null_count or not (lengths.to_numpy() == width).all():
        raise ValueError(f"expected lists of {width} values")
    return values.reshape(-1, width)


def _corners(boxes_xywh: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def _runs(segmentation: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = segmentation.field("counts")
    if counts.null_count:
        raise ValueError(f"{counts.null_count} masks are missing")
    _, offsets_buffer, text_buffer = counts.buffers()
    if not len(counts):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int32)[counts.offset : counts.offset + len(counts) + 1].astype(np.int64)
    text = np.frombuffer(text_buffer, np.uint8)
    pixels = _rows_of(segmentation.field("size"), 2, np.int64).prod(axis=1)
    ends, starts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for first in range(0, len(pixels), _MASKS_AT_ONCE):
        own = offsets[first : first + _MASKS_AT_ONCE + 1]
        found, places = run_ends(text[own[0] : own[-1]], own - own[0], pixels[first : first + _MASKS_AT_ONCE])
        ends.append(found)
        starts.append(places[1:] + starts[-1][-1])
    return np.concatenate(ends), np.concatenate(starts)


def _images(column: Any, rows: int) -> list[bytes | None]:
    if column is None:
        return [None] * rows
    images: list[bytes | None] = pa.array(column.field("bytes")).to_pylist()
    return images
