"""Records as Arrow tables, as they travel between the workers of a run.

A field of a record is a list of bytes: its value as JSON, then the arrays and encoded images in it.
`stages/contract/schema.py` has the rows of a dataset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from operator import is_, methodcaller
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.contract.records import Record

_ARRAYS: Final = (np.ndarray, NDArray)  # the origin of NDArray[...] before numpy 2.5, and from then on
_fields: Final[Callable[[Any], dict[str, Any]]] = cache(get_type_hints)  # of a dataclass

RECORD_SCHEMA: Final = pa.schema(
    [("sample_id", pa.string()), *((name, pa.list_(pa.large_binary())) for name in _fields(Record))]
)
"""The sample's id, and the fields of `Record`."""


def _plain(value: Any, buffers: list[bytes]) -> Any:
    """Return a value of a record as a value of JSON; append the bytes in it to `buffers`."""
    if isinstance(value, tuple):
        return [_plain(item, buffers) for item in value]
    if isinstance(value, np.ndarray):
        buffers.append(value.tobytes())
        return [value.dtype.str, value.shape]
    if isinstance(value, bytes):
        buffers.append(value)
        return True
    if is_dataclass(value):
        return [_plain(getattr(value, name), buffers) for name in _fields(type(value))]
    return value


Reader = Callable[[Any, Iterator[bytes]], Any]
"""A value of JSON, and the bytes that come next -> the value of a record."""


@cache
def _reader(hint: Any) -> Reader:
    """Return what inverts `_plain` for values with a type hint of the records."""
    if isinstance(hint, UnionType):  # X | None
        inner = _reader(get_args(hint)[0])
        return lambda plain, buffers: None if plain is None else inner(plain, buffers)
    if is_dataclass(hint):
        readers = {name: _reader(inner) for name, inner in _fields(hint).items()}
        kind: Any = hint
        return lambda plain, buffers: kind(
            **{
                name: reader(item, buffers)
                for (name, reader), item in zip(readers.items(), plain, strict=True)
            }
        )
    if get_origin(hint) is tuple:
        inner = _reader(get_args(hint)[0])
        return lambda plain, buffers: tuple([inner(item, buffers) for item in plain])
    if hint is bytes:
        return lambda _, buffers: next(buffers)
    if get_origin(hint) in _ARRAYS:
        return lambda array, buffers: np.frombuffer(next(buffers), array[0]).reshape(array[1])
    return lambda plain, _: plain


def records_to_table(
    records: Sequence[Record],
    source: tuple[Sequence[Record], Any] | None = None,
) -> Any:
    """Return records as a table of `RECORD_SCHEMA`, one row each, in order.

    source: The records that stages made these from, and their table. The columns that no stage
    changed come from it.
    """
    columns: dict[str, Any] = {"sample_id": [record.sample.sample_id for record in records]}
    for name in _fields(Record):
        values = _column_of(records, name)
        if source is not None and all(map(is_, values, _column_of(source[0], name))):
            columns[name] = source[1][name]
        else:
            columns[name] = [_parts(value) for value in values]
    return pa.table(columns, schema=RECORD_SCHEMA)


def _column_of(records: Sequence[Record], name: str) -> list[Any]:
    return [getattr(record, name) for record in records]


def _parts(value: Any) -> list[bytes]:
    buffers: list[bytes] = []
    plain = _plain(value, buffers)
    return [json.dumps(plain, default=methodcaller("item")).encode(), *buffers]


def table_to_records(table: Any) -> list[Record]:
    """Invert `records_to_table`."""
    columns = []
    for name, hint in _fields(Record).items():
        reader = _reader(hint)
        columns.append([
            reader(json.loads(text), iter(buffers)) for text, *buffers in table[name].to_pylist()
        ])  # fmt: skip
    return [Record(**dict(zip(_fields(Record), row, strict=True))) for row in zip(*columns, strict=True)]
