"""Records as Arrow tables, as they travel between workers.

`stages/contract/schema.py` has the rows of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from functools import cache
from itertools import chain, pairwise, repeat
from math import prod
from operator import is_
from types import UnionType
from typing import Any, Final, cast, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phrasebox.stages.contract.errors import Reason
from phrasebox.stages.contract.records import Record

_KINDS: Final = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.large_binary(),
    bool: pa.bool_(),
    Reason: pa.string(),
}
_ARRAY: Final = pa.struct([("shape", pa.list_(pa.int32())), ("data", pa.large_binary())])
_ARRAYS: Final = (np.ndarray, NDArray)  # the origin of NDArray[...] before numpy 2.5, and from then on
_fields: Final[Callable[[Any], dict[str, Any]]] = cache(get_type_hints)  # of a dataclass


def _kind(hint: Any) -> Any:
    """Return the Arrow type of values with a type hint of the records."""
    if is_dataclass(hint):
        return pa.struct([(name, _kind(inner)) for name, inner in _fields(hint).items()])
    if isinstance(hint, UnionType):  # X | None
        return _kind(get_args(hint)[0])
    origin = get_origin(hint)
    if origin is tuple:
        return pa.list_(_kind(get_args(hint)[0]))
    return _ARRAY if origin in _ARRAYS else _KINDS[hint]


def _scalar(hint: Any) -> Any:
    last = get_args(hint)[-1]  # from numpy 2.5 on the scalar's type, before that dtype[...] of it
    return (get_args(last) or (last,))[0]


def _pack(values: Sequence[Any], hint: Any) -> Any:
    """Return values with a type hint of the records as an Arrow array, column by column.

    Any value may be None.
    """
    if isinstance(hint, UnionType):
        return _pack(values, get_args(hint)[0])
    is_array = get_origin(hint) in _ARRAYS
    if is_dataclass(hint):
        parts = {
            name: _pack(
                [None if value is None else getattr(value, name) for value in values],
                inner,
            )
            for name, inner in _fields(hint).items()
        }
    elif is_array:
        data = [b"" if value is None else np.ascontiguousarray(value).data.cast("B") for value in values]
        buffers = [None, pa.py_buffer(_starts(data)), pa.py_buffer(b"".join(data))]
        shapes = [() if value is None else value.shape for value in values]
        parts = {
            "shape": pa.ListArray.from_arrays(
                _starts(shapes, np.int32),
                np.array([*chain(*shapes)], np.int32),
            ),
            "data": pa.Array.from_buffers(pa.large_binary(), len(values), buffers),
        }
    elif get_origin(hint) is tuple:
        lists = [value or () for value in values]
        return pa.ListArray.from_arrays(
            _starts(lists, np.int32),
            _pack([*chain(*lists)], get_args(hint)[0]),
        )
    else:
        return pa.array(values, _KINDS[hint])
    missing = np.array([value is None for value in values], bool)
    return pa.StructArray.from_arrays(
        parts.values(),
        parts,
        mask=pa.array(missing) if missing.any() else None,
    )


def _starts(values: Sequence[Any], kind: type = np.int64) -> Any:
    """Return the offset of each value in the concatenation of all, and its length: (len(values) + 1,)."""
    return np.cumsum([0, *map(len, values)], dtype=kind)


def _unpack(array: Any, hint: Any) -> list[Any]:
    """Invert `_pack`. The bytes of NumPy's arrays are not copied."""
    if isinstance(hint, UnionType):
        return _unpack(array, get_args(hint)[0])
    origin = get_origin(hint)
    values: Iterable[Any]
    if origin is tuple:
        starts = array.offsets.to_numpy().tolist()
        flat = _unpack(array.values.slice(starts[0], starts[-1] - starts[0]), get_args(hint)[0])
        return [tuple(flat[start - starts[0] : end - starts[0]]) for start, end in pairwise(starts)]
    if origin in _ARRAYS:
        kind = np.dtype(_scalar(hint))
        shapes = _unpack(array.field("shape"), tuple[int, ...])
        data = array.field("data")
        _, starts, content = data.buffers()
        first = np.frombuffer(starts, np.int64)[data.offset :].tolist()
        values = (
            np.frombuffer(content, kind, prod(shape), start).reshape(shape) if shape else None
            for shape, start in zip(shapes, first, strict=False)
        )
    elif is_dataclass(hint):
        names = _fields(hint)
        columns = [_unpack(array.field(name), inner) for name, inner in names.items()]
        validity = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else repeat(True)
        rows = zip(validity, *columns, strict=False)
        values = (
            cast(Any, hint)(**dict(zip(names, row, strict=True))) if is_valid else None
            for is_valid, *row in rows
        )
    else:
        # The way over NumPy is ten times faster, but turns integers beside null into floats.
        values = array.to_pylist() if array.null_count else array.to_numpy(zero_copy_only=False).tolist()
    return list(values)


RECORD_SCHEMA: Final = pa.schema([("id", pa.int64()), *_kind(Record)])
"""A record on its way between workers: the fields of `Record`, and the sample's id."""


def records_to_table(
    records: Sequence[Record],
    source: tuple[Sequence[Record], Any] | None = None,
) -> Any:
    """Return records as a table of `RECORD_SCHEMA`, one row each, in order.

    source: The records that stages made these from, and their table. The columns that no stage
    changed come from it.
    """
    columns = {}
    for name, hint in _fields(Record).items():
        values = _column_of(records, name)
        if source is not None and all(map(is_, values, _column_of(source[0], name))):
            columns[name] = source[1][name]
        else:
            columns[name] = _pack(values, hint)
    columns["id"] = pa.array([record.sample.id for record in records], pa.int64())
    return pa.table({name: columns[name] for name in RECORD_SCHEMA.names}, schema=RECORD_SCHEMA)


def _column_of(records: Sequence[Record], name: str) -> list[Any]:
    return [getattr(record, name) for record in records]


def table_to_records(table: Any) -> list[Record]:
    """Invert `records_to_table`. The arrays of the records are views of the table's memory."""
    columns = [
        [value for chunk in table[name].chunks for value in _unpack(chunk, hint)]
        for name, hint in _fields(Record).items()
    ]
    return [Record(**dict(zip(_fields(Record), row, strict=True))) for row in zip(*columns, strict=True)]
