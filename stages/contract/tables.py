"""Records as Arrow tables, as they travel between the workers of a run: a column of pickled values for each field.

`stages/contract/schema.py` has the rows of a dataset.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from operator import is_
from typing import Any, Final

import pyarrow as pa

from stages.contract.records import Record

_FIELDS: Final = tuple(field.name for field in fields(Record))

RECORD_SCHEMA: Final = pa.schema(
    [("sample_id", pa.string()), *((name, pa.large_binary()) for name in _FIELDS)]
)
"""The sample's id, and the fields of `Record`: a batch may hold 2 GB of images."""


def records_to_table(
    records: Sequence[Record],
    source: tuple[Sequence[Record], Any] | None = None,
) -> Any:
    """Return records as a table of `RECORD_SCHEMA`, one row each, in order.

    source: The records that stages made these from, and their table. The columns that no stage
    changed come from it.
    """
    columns = {"sample_id": pa.array([record.sample.sample_id for record in records], pa.string())}
    for name in _FIELDS:
        values = _column_of(records, name)
        if source is not None and all(map(is_, values, _column_of(source[0], name))):
            columns[name] = source[1][name]
        else:
            columns[name] = pa.array(
                [pickle.dumps(value, protocol=5) for value in values], pa.large_binary()
            )
    return pa.table(columns, schema=RECORD_SCHEMA)


def _column_of(records: Sequence[Record], name: str) -> list[Any]:
    return [getattr(record, name) for record in records]


def table_to_records(table: Any) -> list[Record]:
    """Invert `records_to_table`."""
    columns = [
        [pickle.loads(value.as_buffer()) for value in table[name]]  # noqa: S301  from workers of this run
        for name in _FIELDS
    ]
    return [Record(**dict(zip(_FIELDS, row, strict=True))) for row in zip(*columns, strict=True)]
