"""Writing shards."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.schema import IMAGE_FIELD
from stages.shared.storage import AnyPath, replacing

PARQUET_SETTINGS: Final[dict[str, Any]] = {"compression": "zstd", "compression_level": 3}
"""zstd: half the size of snappy on run-length masks and captions at the same reading speed."""

ROW_GROUP_ROWS: Final = 1000
IMAGE_ROW_GROUP_ROWS: Final = 100
"""For shards with images: whoever wants one row reads a row group, which is then some 10 MB."""


def row_group_rows(*, embed_images: bool) -> int:
    """Rows of the row groups of a shard, whichever engine writes it."""
    return IMAGE_ROW_GROUP_ROWS if embed_images else ROW_GROUP_ROWS


class ShardWriter:
    """Collects tables of rows, and writes each shard atomically as soon as there are enough rows for it.

    The rows of a write that fails are gone.

    Args:
        folder: Where the shards go. They are numbered from the highest number there on.
        rows_per_file: Rows of every shard except the last.
    """

    def __init__(self, folder: AnyPath, rows_per_file: int) -> None:
        self.folder = folder
        self.rows_per_file = rows_per_file
        self._tables: list[Any] = []
        self._rows = 0
        taken = [int(path.stem) for path in folder.glob("*.parquet") if path.stem.isdigit()]
        self._next = max(taken, default=-1) + 1

    def write(self, table: Any) -> None:
        """Add rows, and write the shards that are full."""
        self._tables.append(table)
        self._rows += table.num_rows
        while self._rows >= self.rows_per_file:
            self._flush(self.rows_per_file)

    def close(self) -> None:
        """Write the remaining rows."""
        if self._rows:
            self._flush(self._rows)

    def _flush(self, rows: int) -> None:
        table, path = pa.concat_tables(self._tables), self.folder / f"{self._next:05d}.parquet"
        group, rest = row_group_rows(embed_images=IMAGE_FIELD.name in table.column_names), table.slice(rows)
        # Noted first: a write that is interrupted may have made its shard, and is not repeated by `close`.
        self._tables, self._rows = ([rest], rest.num_rows) if rest.num_rows else ([], 0)
        self._next += 1
        with replacing(path) as temporary:
            pq.write_table(table.slice(0, rows), temporary, row_group_size=group, **PARQUET_SETTINGS)
