"""Rows of one split as numbered Parquet files: data/SPLIT-00000-of-00003.parquet, the names that `datasets` knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.dataset.export.target import Target
from stages.write.parquet import PARQUET_SETTINGS

_ROWS_AT_ONCE: Final = 32
"""Rows that are kept as Python objects, ten times larger than as Arrow's."""


class ParquetParts:
    """Writes rows in row groups, so that only one group is in memory.

    rows_per_file   of every file but the last
    rows_per_group  of every group but a file's last
    """

    def __init__(self, target: Target, split: str, schema: Any, *, rows_per_file: int, rows_per_group: int) -> None:
        self._target = target
        self._split = split
        self._schema = schema
        self._rows_per_file = rows_per_file
        self._rows_per_group = rows_per_group
        self._rows: list[Mapping[str, Any]] = []
        self._tables: list[Any] = []
        self._in_group = 0
        self._in_file = 0
        self._files: list[str] = []
        self._writer: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; may write a group."""
        self._rows.append(row)
        self._in_group += 1
        self._in_file += 1
        if len(self._rows) == _ROWS_AT_ONCE:
            self._pack()
        if self._in_group == self._rows_per_group or self._in_file == self._rows_per_file:
            self._flush()

    def close(self) -> None:
        """Write what is left and give the files their names.

        A split without rows has no file: `datasets` refuses files and splits without rows.
        """
        if self._in_group:
            self._flush()
        self.abandon()
        for number, name in enumerate(self._files):
            self._target.renamed(name, f"data/{self._split}-{number:05d}-of-{len(self._files):05d}.parquet")

    def abandon(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _pack(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _flush(self) -> None:
        self._pack()
        if self._writer is None:
            name = f"data/{self._split}-{len(self._files):05d}.parquet"
            self._files.append(name)
            self._writer = pq.ParquetWriter(self._target.file(name), self._schema, **PARQUET_SETTINGS)
        self._writer.write_table(pa.concat_tables(self._tables))
        self._tables, self._in_group = [], 0
        if self._in_file >= self._rows_per_file:
            self.abandon()
            self._in_file = 0
