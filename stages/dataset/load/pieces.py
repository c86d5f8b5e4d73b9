"""Row groups of the shards: which of them can hold a chosen region, and which rows of them do.

Parquet keeps the number of nulls and the largest value of every column of a row group. That tells, without reading
a row, of groups in which every row failed, no row has a region, or no score reaches the least one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.contract.errors import InputError
from stages.dataset.folder import Dataset, open_shard, tables_in
from stages.dataset.selection import REGION, Selection, Selector

SCORE: Final = f"{REGION}score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows are samples, and which of their regions they have.

    selection    of regions
    keep_empty   also rows without a chosen region
    keep_failed  also rows with an error, which have neither regions nor an image
    """

    selection: Selection
    keep_empty: bool = False
    keep_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A row group.

    rows  numbers of the rows that are samples, in order; None: not counted yet, `size` is that of the row group
    size  how many rows it counts for
    """

    path: Path
    group: int
    size: int
    rows: NDArray[np.int64] | None = None

    def numbers(self, first: int, last: int) -> NDArray[np.int64]:
        """Numbers in the row group of its rows `first` to `last`."""
        return np.arange(first, last) if self.rows is None else self.rows[first:last]


def pieces_of(dataset: Dataset, choice: Choice) -> tuple[list[Piece], int]:
    """Row groups that may hold samples, in order, and how many others there are.

    Raises InputError for a shard that is damaged.
    """
    pieces, skipped = [], 0
    for path in dataset.shards:
        with open_shard(path) as file:
            metadata = file.metadata
            names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
            numbers = {name: names.index(name) for name in ("error", SCORE) if name in names}
            if len(numbers) != 2:
                raise InputError(f"{path} is not a shard of a dataset: it lacks the columns error or annotations")
            for group in range(metadata.num_row_groups):
                described = metadata.row_group(group)
                columns = {name: described.column(number) for name, number in numbers.items()}
                if described.num_rows and _may_hold(columns, described.num_rows, choice):
                    pieces.append(Piece(path=path, group=group, size=described.num_rows))
                else:
                    skipped += 1
    return pieces, skipped


def _may_hold(columns: dict[str, Any], rows: int, choice: Choice) -> bool:
    errors, scores = columns["error"].statistics, columns[SCORE].statistics
    sound = errors.null_count if errors is not None and errors.has_null_count else None
    if sound == 0 and not choice.keep_failed:
        return False
    if choice.keep_empty or (choice.keep_failed and sound != rows) or scores is None:
        return True
    # A row without regions counts as a null.
    if scores.has_null_count and scores.null_count == columns[SCORE].num_values:
        return False
    # As stored: 0.8 is another number in float32.
    return not scores.has_min_max or bool(scores.max >= np.float32(choice.selection.min_score))


def counted(pieces: Iterable[Piece], choice: Choice, selector: Selector) -> list[Piece]:
    """The pieces with the rows that are samples, and without those that have none. Reads what the choice asks for."""
    columns = ["error", *choice.selection.columns]
    found = []
    for piece in pieces:
        rows = [first + samples_of(table, choice, selector)[1] for first, table in tables(piece, columns)]
        kept = np.concatenate(rows)
        if len(kept):
            found.append(Piece(path=piece.path, group=piece.group, size=len(kept), rows=kept))
    return found


def samples_of(table: Any, choice: Choice, selector: Selector) -> tuple[Any, NDArray[np.int64]]:
    """The rows of a table that are samples, with their chosen regions, and their numbers in the table."""
    table = selector.choose(table)
    failed = pc.is_valid(table["error"]).to_numpy()
    regions = pc.fill_null(pc.list_value_length(table["annotations"]), 0).to_numpy()
    kept = np.where(failed, choice.keep_failed, choice.keep_empty | (regions > 0))
    numbers = np.flatnonzero(kept)
    return (table if len(numbers) == table.num_rows else table.filter(pa.array(kept))), numbers


def tables(piece: Piece, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Gives the rows of a piece as tables of at most a few MB, each with the number of its first row.

    Single-threaded: Arrow's threads do not survive a fork, and DataLoader runs a worker for each core anyway.

    Args:
        piece: The row group.
        columns: Paths of leaf columns.

    Raises:
        InputError: The shard is damaged.
    """
    with open_shard(piece.path) as file:
        yield from tables_in(file, columns, group=piece.group, threads=False)
