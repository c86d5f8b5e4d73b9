"""Parquet files as we write them: their compression and checksums, and tables that become several files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from phrasebox.stages.contract.values import Json

# zstd: half the size of snappy on run-length masks and captions at the same reading speed.
PARQUET_SETTINGS: Final[Json] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_page_checksum": True,
}


class RollingParquet:
    """Tables of rows as numbered Parquet files. Only one row group is in memory.

    If a write fails, the rows of its file are lost.

    Args:
        place: Number of a file, from 0 on -> a context with the local path, or the open file, to
            write. The file is in its place when the context ends without an error.
        rows_per_file, rows_per_group: Most rows of a file, and of a row group.

    >>> from contextlib import nullcontext
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     place = lambda number: nullcontext(Path(folder, f"{number}.parquet"))
    ...     parquet = RollingParquet(place, rows_per_file=2, rows_per_group=2)
    ...     parquet.write(pa.table({"id": [1, 2, 3]}))
    ...     parquet.close()
    ...     parquet.files
    2
    """

    def __init__(
        self,
        place: Callable[[int], AbstractContextManager[Path | IO[bytes]]],
        *,
        rows_per_file: int,
        rows_per_group: int,
    ) -> None:
        self.files = 0
        self._place = place
        self._rows_per_file = rows_per_file
        self._rows_per_group = rows_per_group
        self._tables: list[Any] = []
        self._rows = 0
        self._in_file = 0
        self._file = ExitStack()
        self._writer: Any = None

    def write(self, table: Any) -> None:
        """Add rows; write the row groups that are full."""
        self._tables.append(table)
        self._rows += table.num_rows
        while self._rows >= self._next_rows:
            self._flush(self._next_rows)

    @property
    def _next_rows(self) -> int:
        """The rows of the next row group."""
        return min(self._rows_per_group, self._rows_per_file - self._in_file)

    def close(self) -> None:
        """Write the remaining rows."""
        if self._rows:
            self._flush(self._rows)
        self._detach().close()

    def abandon(self) -> None:
        """Drop the unfinished file."""
        file = self._detach()
        with suppress(OSError, pa.ArrowException):  # of a disk that is full
            file.__exit__(InterruptedError, InterruptedError(), None)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._tables)
        rest = table.slice(rows)
        self._rows = rest.num_rows
        self._tables = [rest] if self._rows else []
        try:
            if self._writer is None:
                target = self._file.enter_context(self._place(self.files))
                self._writer = self._file.enter_context(
                    pq.ParquetWriter(target, table.schema, **PARQUET_SETTINGS)
                )
                self.files += 1
            self._write_group(table.slice(0, rows))
            self._in_file += rows
            if self._in_file == self._rows_per_file:
                self._detach().close()
        except BaseException:
            self.abandon()
            raise

    def _write_group(self, table: Any) -> None:
        self._writer.write_table(table, row_group_size=table.num_rows)

    def _detach(self) -> ExitStack:
        """Return the open file; the next rows begin another one."""
        file = self._file
        self._file = ExitStack()
        self._writer = None
        self._in_file = 0
        return file
