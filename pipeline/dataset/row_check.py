"""Which rows of a table break the contract, so that code which relies on it would fail, or harm.

`foreign_tables` asks where a dataset of somebody else is opened. `validate` goes on from here, to what takes longer
and harms nobody: whether phrases, areas and counts are right.

All checks are those of whole columns. Rows are only looked at one by one to say which is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.stages.contract.errors import one_line
from phrasebox.stages.contract.masks import run_ends
from phrasebox.stages.contract.records import ID_BITS
from phrasebox.stages.contract.schema import DATASET_FIELDS, ENTRIES, IMAGE_FIELD, OPTIONAL_FIELDS, Column
from phrasebox.stages.contract.values import Bools, Integers
from phrasebox.stages.images.faults import MAX_PIXELS_CEILING

FIELDS: Final = (*DATASET_FIELDS, *OPTIONAL_FIELDS)
RANGES: Final = {
    "0 .. 1": (0.0, 1.0),
    "-1 .. 1": (-1.001, 1.001),
}  # Lowest and highest value, with rounded cosines

SMALL_MAP_CELLS: Final = 1 << 20
"""Cells that the heat map of any image may have: the grids of models are far smaller, but may be larger than an
image of a few pixels."""

_ROUNDING_PX: Final = 0.01  # By which the sum of two numbers of 32 bits may leave the image
_MOST_ID: Final = (1 << ID_BITS) - 1
_LENGTHS: Final = {"bbox": 4, "span": 2, "size": 2}  # Of lists of numbers
_OUTSIDE: Final = r"(?i)^/|(^|/)\.\.(/|$)|\x00|://|^(file|http|https|data):"
"""File names that are no path below a folder."""


def schema_problems(schema: Any) -> Iterator[str]:
    """Yield the columns of a shard that are missing, repeated, or of another type than the contract's."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    for field in FIELDS:
        if schema.names.count(field.name) > 1:
            yield f"column {field.name}: there are {schema.names.count(field.name)}"
        if (field in DATASET_FIELDS or field.name in kinds) and kinds.get(field.name) != field.kind:
            yield f"column {field.name}: expected {field.kind}, got {kinds.get(field.name, 'none')}"


def row_problems(table: Any) -> dict[int, str]:
    """Return the first problem of each row that breaks the contract, by the number of the row.

    The columns have the contract's types. `image` may be left out, and is only looked at for its path.
    """
    problems = dict(_malformed(table))
    sound = np.setdiff1d(np.arange(table.num_rows), [*problems])
    batch = _Batch(table if len(sound) == table.num_rows else table.take(sound))
    for row, problem in batch.problems():
        problems.setdefault(int(sound[row]), problem)
    return problems


def _malformed(table: Any) -> Iterator[tuple[int, str]]:
    """Yield rows that hold null where the contract has none, lists of another length, or text that is not UTF-8."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(table.num_rows):
            try:
                pa.Table.from_pydict(
                    {name: table[name].take([row]) for name in table.column_names}
                ).validate(full=True)
            except pa.ArrowInvalid as error:
                yield row, one_line(error)
        return
    for field in FIELDS:
        if field.name in table.column_names:
            array = _joined(table[field.name])
            yield from _nulls(array, field, field.name)
            if field.name in ENTRIES:
                yield from _malformed_entries(array, field.name)
            elif field.name in ("captions", "caption_language", "warnings"):
                rows = pc.list_parent_indices(array)
                yield from ((row, f"{field.name} hold null") for row in _null_places(array.flatten(), rows))


def _malformed_entries(lists: Any, name: str) -> Iterator[tuple[int, str]]:
    rows = pc.list_parent_indices(lists)
    entries = lists.flatten()
    for column, array in zip(ENTRIES[name], entries.flatten(), strict=True):
        label = f"{name}: {column.name}"
        yield from _nulls(array, column, label, rows)
        if column.name == "segmentation":
            size, counts = array.flatten()
            yield from _nulls(counts, column, f"{name}: counts", rows)
            yield from _wrong_lengths(size, 2, f"{name}: mask size", rows)
        elif column.name in _LENGTHS:
            yield from _wrong_lengths(array, _LENGTHS[column.name], label, rows)


def _nulls(array: Any, column: Column, label: str, rows: Any = None) -> Iterator[tuple[int, str]]:
    if array.null_count and not column.optional:
        yield from ((row, f"{label} is null") for row in _null_places(array, rows))


def _null_places(array: Any, rows: Any = None) -> list[int]:
    if not array.null_count:
        return []
    places = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
    return [*map(int, places if rows is None else rows.to_numpy()[places])]


def _wrong_lengths(lists: Any, length: int, label: str, rows: Any) -> Iterator[tuple[int, str]]:
    is_wrong = pc.fill_null(pc.not_equal(pc.list_value_length(lists), length), True)
    problem = f"{label} has not {length} numbers"
    if pc.any(is_wrong).as_py():
        places = np.flatnonzero(is_wrong.to_numpy(zero_copy_only=False))
        yield from ((int(row), problem) for row in rows.to_numpy()[places])
    if lists.flatten().null_count:
        inner = pc.list_parent_indices(lists)
        for place in _null_places(lists.flatten(), inner):
            yield int(rows[place].as_py()), problem


def _joined(column: Any) -> Any:
    chunks = column.combine_chunks()
    return chunks if isinstance(chunks, pa.Array) else pa.concat_arrays(chunks.chunks)


def _numbers(array: Any) -> Any:
    """The values of a column of numbers; null is 0."""
    return array.fill_null(0).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, slots=True)
class _Entries:
    """The entries of a column of lists, one after the other.

    Attributes:
        name: The column.
        rows: (entries,), the row of each.
        fields: Arrow arrays by field.
    """

    name: str
    rows: Integers
    fields: Mapping[str, Any]

    @staticmethod
    def of(lists: Any, name: str) -> _Entries:
        """Take the entries apart."""
        names = [column.name for column in ENTRIES[name]]
        arrays = lists.flatten().flatten()
        rows = pc.list_parent_indices(lists).to_numpy()
        return _Entries(name, rows, dict(zip(names, arrays, strict=True)))

    def numbers(self, name: str) -> Any:
        """The numbers of a field (entries,), or of its lists (entries, length)."""
        array = self.fields[name]
        if name in _LENGTHS:
            return _numbers(array.flatten()).reshape(-1, _LENGTHS[name])
        return _numbers(array)

    def where(self, is_wrong: Bools, problem: Callable[[int], str]) -> Iterator[tuple[int, str]]:
        """Yield row and problem of wrong entries."""
        for entry in np.flatnonzero(is_wrong):
            phrase = self.fields["phrase"][entry].as_py()
            yield int(self.rows[entry]), f"{self.name}: {phrase!r}: {problem(int(entry))}"


class _Batch:
    """Rows without null where the contract has none."""

    def __init__(self, table: Any) -> None:
        self.columns = {name: _joined(table[name]) for name in table.column_names}
        self.is_good = self.columns["error"].is_null().to_numpy(zero_copy_only=False)
        self.ids = _numbers(self.columns["id"])
        self.width = _numbers(self.columns["width"]).astype(np.int64)
        self.height = _numbers(self.columns["height"]).astype(np.int64)

    def problems(self) -> Iterator[tuple[int, str]]:
        """Yield rows and their problems; those of the row itself come first."""
        yield from self._row_problems()
        entries = {name: _Entries.of(self.columns[name], name) for name in ENTRIES if name in self.columns}
        for part in entries.values():
            yield from self._number_problems(part)
            if "caption_index" in part.fields:
                yield from self._span_problems(part)
        yield from self._region_problems(entries["annotations"])
        if "heat_maps" in entries:
            yield from self._heat_map_problems(entries["heat_maps"])

    def _row_problems(self) -> Iterator[tuple[int, str]]:
        width = self.width
        height = self.height

        def where(is_wrong: Bools, problem: Callable[[int], str]) -> Iterator[tuple[int, str]]:
            return ((int(row), problem(int(row))) for row in np.flatnonzero(is_wrong))

        yield from where(_is_no_id(self.ids), lambda row: f"the id {self.ids[row]} is not in 1 .. 2^53 - 1")
        least = self.is_good.astype(np.int64)  # 0 is the size of an image that could not be read
        is_wrong = (width < least) | (height < least) | (width * height > MAX_PIXELS_CEILING)
        yield from where(
            is_wrong, lambda row: f"{width[row]} x {height[row]} px is no size of an image that is read"
        )
        names = self.columns["file_name"]
        yield from where(
            _leaves_root(names) & self.is_good,
            lambda row: f"file_name {names[row].as_py()!r} is no path below the image root",
        )
        if IMAGE_FIELD.name in self.columns:
            paths = pc.struct_field(self.columns[IMAGE_FIELD.name], "path")
            yield from where(
                _leaves_root(paths),
                lambda row: f"image.path {paths[row].as_py()!r} is no path below the image root",
            )
        counts = _numbers(self.columns["phrase_count"])
        yield from where(counts < 0, lambda row: f"phrase_count is {counts[row]}")
        for field in FIELDS:
            if field.name in self.columns and field.unit in RANGES and pa.types.is_list(field.kind):
                lists = self.columns[field.name]
                rows = pc.list_parent_indices(lists).to_numpy()
                is_wrong = _is_outside(_numbers(lists.flatten()), field.unit)
                yield from ((int(row), f"{field.name} is not in {field.unit}") for row in rows[is_wrong])

    def _number_problems(self, entries: _Entries) -> Iterator[tuple[int, str]]:
        for column in ENTRIES[entries.name]:
            if column.name == "phrase":
                is_wrong = pc.equal(entries.fields["phrase"], "").to_numpy(zero_copy_only=False)
                yield from entries.where(is_wrong, lambda _: "phrase is empty")
            elif pa.types.is_floating(column.kind):
                values = entries.numbers(column.name)
                expected = column.unit if column.unit in RANGES else "any finite number"
                yield from entries.where(
                    _is_outside(values, column.unit),
                    lambda entry, name=column.name, values=values, expected=expected: (  # type: ignore[misc]
                        f"{name} is {values[entry]}, expected {expected}"
                    ),
                )

    def _span_problems(self, entries: _Entries) -> Iterator[tuple[int, str]]:
        captions = self.columns["captions"]
        counts = _numbers(pc.list_value_length(captions)).astype(np.int64)
        first = np.cumsum(counts) - counts
        index = entries.numbers("caption_index").astype(np.int64)
        has_caption = (index >= 0) & (index < counts[entries.rows])
        yield from entries.where(
            ~has_caption,
            lambda entry: (
                f"caption_index {index[entry]} but there are {counts[entries.rows[entry]]} captions"
            ),
        )
        lengths = np.append(_numbers(pc.utf8_length(captions.flatten())), 0)
        length = lengths[np.where(has_caption, first[entries.rows] + index, -1)]
        start, end = entries.numbers("span").T
        is_said = (index != 0) | (start != 0) | (end != 0)
        yield from entries.where(
            has_caption & is_said & ~((start >= 0) & (start < end) & (end <= length)),
            lambda entry: (
                f"span [{start[entry]}, {end[entry]}) leaves the caption of {length[entry]} characters"
            ),
        )

    def _region_problems(self, regions: _Entries) -> Iterator[tuple[int, str]]:
        ids = regions.numbers("id")
        yield from regions.where(
            _is_no_id(ids), lambda entry: f"the id {ids[entry]} is not in 1 .. 2^53 - 1"
        )
        image_ids = regions.numbers("image_id")
        yield from regions.where(
            image_ids != self.ids[regions.rows],
            lambda entry: f"image_id {image_ids[entry]} is not the row's id",
        )
        width = self.width[regions.rows]
        height = self.height[regions.rows]
        boxes = regions.numbers("bbox").astype(np.float64)
        x, y, w, h = boxes.T
        is_inside = (x >= 0) & (y >= 0) & (w > 0) & (h > 0)
        is_inside &= (x + w <= width + _ROUNDING_PX) & (y + h <= height + _ROUNDING_PX)  # false for NaN
        yield from regions.where(
            ~is_inside,
            lambda entry: (
                f"box {boxes[entry].tolist()} is not inside "
                f"the image of {width[entry]} x {height[entry]} px"
            ),
        )
        size, counts = regions.fields["segmentation"].flatten()
        sizes = _numbers(size.flatten()).reshape(-1, 2)
        has_size = (sizes == np.stack([height, width], axis=1)).all(axis=1)
        yield from regions.where(
            ~has_size,
            lambda entry: (
                f"mask size {sizes[entry].tolist()} is not [height, width] of the image, "
                f"[{height[entry]}, {width[entry]}]"
            ),
        )
        is_damaged = _are_damaged(counts, np.where(has_size, height * width, 0))
        yield from regions.where(
            is_damaged & has_size, lambda _: "the mask's counts are damaged, or of another size"
        )

    def _heat_map_problems(self, maps: _Entries) -> Iterator[tuple[int, str]]:
        sizes = maps.numbers("size").astype(np.int64)
        cells = sizes.prod(axis=1)
        most = np.maximum(self.width * self.height, SMALL_MAP_CELLS)[maps.rows]
        is_wrong = (sizes < 1).any(axis=1) | (sizes > most[:, None]).any(axis=1) | (cells > most)
        yield from maps.where(
            is_wrong, lambda entry: f"a size of {sizes[entry].tolist()} cells is none of the image's"
        )
        levels = maps.fields["levels"]
        lengths = _numbers(pc.binary_length(levels))
        has_levels = levels.is_valid().to_numpy(zero_copy_only=False)
        yield from maps.where(
            has_levels & (lengths != cells) & ~is_wrong,
            lambda entry: f"{lengths[entry]} levels for {sizes[entry].tolist()} cells",
        )
        totals = np.bincount(maps.rows, np.where(is_wrong, 0, cells), minlength=1)
        for row in np.flatnonzero(totals > MAX_PIXELS_CEILING):
            yield int(row), f"heat_maps: {int(totals[row])} cells in all"


def _is_no_id(ids: Integers) -> Bools:
    is_wrong: Bools = (ids < 1) | (ids > _MOST_ID)
    return is_wrong


def _is_outside(values: Any, unit: str) -> Bools:
    """Whether numbers are not finite, or leave the range that is their unit."""
    low, high = RANGES.get(unit, (-np.inf, np.inf))
    is_outside: Bools = ~(np.isfinite(values) & (values >= low) & (values <= high))
    return is_outside


def _leaves_root(names: Any) -> Bools:
    leaves_root: Bools = pc.fill_null(pc.match_substring_regex(names, _OUTSIDE), False).to_numpy(
        zero_copy_only=False
    )
    return leaves_root


def _are_damaged(counts: Any, pixels: Integers) -> Bools:
    """Return which masks have run-length text that does not decode to their number of pixels."""
    is_damaged = np.zeros(len(counts), np.bool_)
    if _can_decode(counts, pixels):
        return is_damaged
    for number in range(len(counts)):
        is_damaged[number] = not _can_decode(counts.slice(number, 1), pixels[number : number + 1])
    return is_damaged


def _can_decode(counts: Any, pixels: Integers) -> bool:
    if not len(counts):
        return True
    _, starts, content = counts.buffers()
    offsets = np.frombuffer(starts, np.int32)[counts.offset : counts.offset + len(counts) + 1].astype(
        np.int64
    )
    text = np.frombuffer(content or b"", np.uint8)[offsets[0] : offsets[-1]]
    try:
        run_ends(text, offsets - offsets[0], pixels)
    except ValueError:
        return False
    return True
