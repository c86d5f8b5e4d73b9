"""Shards of any schema version that is read, opened as if they were of today's.

A shard names its version in its origin. One without an origin, which no run has written, counts as one of today.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phrasebox.stages.contract import schema_versions
from phrasebox.stages.contract.schema import IMAGE_FIELD
from phrasebox.stages.files.shards import origin_in
from phrasebox.stages.files.storage import AnyPath, parquet_file


@contextmanager
def shard_file(path: AnyPath, *, buffer_bytes: int = 0, pre_buffer: bool = False) -> Iterator[Any]:
    """Open a shard as `parquet_file` does; one of an older version is a `LiftedShard`.

    Raise as `parquet_file`, and ArrowInvalid for a version that is not read.
    """
    with parquet_file(path, buffer_bytes=buffer_bytes, pre_buffer=pre_buffer) as file:
        current = schema_versions.ROWS.current
        version = origin_in(file).get(schema_versions.VERSION, current)
        if fault := schema_versions.ROWS.find_fault(version):
            raise pa.ArrowInvalid(fault)
        yield file if version == current else LiftedShard(file, version)


class LiftedShard:
    """An open shard of an older version, with those members of a `ParquetFile` by which shards are read.

    Its rows are read whole, but for images, and lifted batch by batch.

    Attributes:
        metadata: Those of the file: row groups and numbers of rows are the same.
        num_row_groups: Their number.
        schema_arrow: The columns after the lift.
    """

    def __init__(self, file: Any, version: int) -> None:
        self._file = file
        self._version = version
        self.metadata = file.metadata
        self.num_row_groups: int = file.num_row_groups
        self.schema_arrow = self._lift(file.schema_arrow.empty_table()).schema

    def iter_batches(
        self, batch_size: int = 65_536, columns: Sequence[str] | None = None, **options: Any
    ) -> Iterator[Any]:
        """Yield the rows with some columns, as `ParquetFile.iter_batches`."""
        stored = [name for name in self._file.schema_arrow.names if _is_read(name, columns)]
        for batch in self._file.iter_batches(batch_size=batch_size, columns=stored, **options):
            table = self._lift(pa.Table.from_batches([batch]))
            yield from _with_columns(table, columns).combine_chunks().to_batches()

    def read(self, columns: Sequence[str] | None = None) -> Any:
        """Return all rows with some columns, as `ParquetFile.read`."""
        empty = _with_columns(self.schema_arrow.empty_table(), columns)
        batches = self.iter_batches(columns=columns)
        return pa.concat_tables([empty, *(pa.Table.from_batches([batch]) for batch in batches)])

    def _lift(self, table: Any) -> Any:
        return schema_versions.ROWS.lift(table, self._version)


def _is_read(name: str, columns: Sequence[str] | None) -> bool:
    """Whether a column is read: images, which take most bytes, only where they are asked for."""
    is_asked_for = columns is None or name in {column.partition(".")[0] for column in columns}
    return name != IMAGE_FIELD.name or is_asked_for


def _with_columns(table: Any, columns: Sequence[str] | None) -> Any:
    """Return a table with some columns, and parts of columns: by Parquet, so that their paths mean the same."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    return pq.ParquetFile(pa.BufferReader(content.getvalue())).read(columns=columns and list(columns))
