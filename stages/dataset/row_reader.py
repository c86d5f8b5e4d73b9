"""Rows of a dataset by their number, from the shards that hold them."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.dataset.folder import Dataset
from stages.errors import InputError


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
                raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from error
            return 0

    def _read(self, shard: int, numbers: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Only the row groups that hold one of the rows."""
        path, first = self.dataset.shards[shard], self._firsts[shard]
        found: dict[int, dict[str, Any]] = {}
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                start = first
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    inside = [number for number in numbers if start <= number < stop]
                    if inside:
                        table = file.read_row_group(group, columns=list(columns), use_threads=False)
                        taken = table.take([number - start for number in inside]).to_pylist()
                        found.update(zip(inside, taken, strict=True))
                    start = stop
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from error
        return found
