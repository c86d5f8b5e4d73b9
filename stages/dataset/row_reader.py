"""Rows of a dataset by their number, from the shards that hold them."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.errors import InputError, one_line
from stages.contract.schema import IMAGE_FIELD, read_batches
from stages.dataset.folder import BATCH_ROWS, IMAGE_BATCH_ROWS, Dataset

_BUFFER_BYTES: Final = 1 << 20
"""Read ahead at most so much of a column: a row group of images may be 100 MB."""


class RowReader:
    """Rows of a dataset by number, read from their shards. Opens only the shards it must know."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._firsts = [0]
        self._lock = threading.Lock()

    def rows_at(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows with these numbers, in this order; those beyond the last row are left out.

        Raises InputError for a damaged shard.
        """
        found: dict[int, dict[str, Any]] = {}
        by_shard: dict[int, list[int]] = {}
        for number in numbers:
            shard = self._shard_of(number)
            if shard is not None:
                by_shard.setdefault(shard, []).append(number)
        for shard, members in by_shard.items():
            found |= self._read(shard, sorted(set(members)), columns)
        return [found[number] for number in numbers if number in found]

    def _shard_of(self, number: int) -> int | None:
        with self._lock:
            while number >= self._firsts[-1] and len(self._firsts) <= len(self.dataset.shards):
                path = self.dataset.shards[len(self._firsts) - 1]
                self._firsts.append(self._firsts[-1] + self._length(path))
            if not 0 <= number < self._firsts[-1]:
                return None
            return bisect_right(self._firsts, number) - 1

    def _length(self, path: Path) -> int:
        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError) as error:
            if self.dataset.finished:
                raise InputError(f"{path} is damaged: {one_line(error)}") from error
            return 0

    def _read(self, shard: int, numbers: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Of the row groups that hold one of the rows, and of these no further than the last one."""
        path, first = self.dataset.shards[shard], self._firsts[shard]
        found: dict[int, dict[str, Any]] = {}
        rows = IMAGE_BATCH_ROWS if IMAGE_FIELD.name in columns else BATCH_ROWS
        try:
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
                for group in range(file.num_row_groups):
                    stop = first + file.metadata.row_group(group).num_rows
                    inside = [number for number in numbers if first <= number < stop]
                    start = first
                    first = stop
                    batches = read_batches(file, columns, batch_size=rows, row_groups=[group], use_threads=False)
                    while inside:
                        batch = next(batches)
                        here = [number for number in inside if number < start + batch.num_rows]
                        taken = batch.take(pa.array([number - start for number in here], pa.int64())).to_pylist()
                        found.update(zip(here, taken, strict=True))
                        inside = inside[len(here) :]
                        start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged: {one_line(error)}") from error
        return found
