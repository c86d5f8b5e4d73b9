"""How shards are written."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.schema import IMAGE_FIELD
from stages.storage import AnyPath, replacing

PARQUET_SETTINGS: Final[dict[str, Any]] = {"compression": "zstd", "compression_level": 3}
"""zstd: half the size of snappy on run-length masks and captions at the same reading speed."""

ROW_GROUP_ROWS: Final = 1000
IMAGE_ROW_GROUP_ROWS: Final = 100
"""Of shards that hold images: a reader that wants one row reads a row group of some 10 MB at most."""


class ShardWriter:
    """Collects tables of rows and writes a shard whenever enough rows are there, atomically.

    folder         where the shards go
    rows_per_file  rows of every shard but the last
    """

    def __init__(self, folder: AnyPath, rows_per_file: int) -> None:
        self.folder = folder
        self.rows_per_file = rows_per_file
        self._tables: list[Any] = []
        self._rows = 0
        taken = [int(path.stem) for path in folder.glob("*.parquet") if path.stem.isdigit()]
        self._next = max(taken, default=-1) + 1

    def write(self, table: Any) -> None:
        """Add rows; may write shards."""
        self._tables.append(table)
        self._rows += table.num_rows
        while self._rows >= self.rows_per_file:
            self._flush(self.rows_per_file)

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._flush(self._rows)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._tables)
        group = IMAGE_ROW_GROUP_ROWS if IMAGE_FIELD.name in table.column_names else ROW_GROUP_ROWS
        with replacing(self.folder / f"{self._next:05d}.parquet") as temporary:
            pq.write_table(table.slice(0, rows), temporary, row_group_size=group, **PARQUET_SETTINGS)
        rest = table.slice(rows)
        self._tables, self._rows = ([rest], rest.num_rows) if rest.num_rows else ([], 0)
        self._next += 1
