"""Tables as programs have them: Arrow, pandas, lists of rows and dicts of columns. Columns are added to each in kind.

Libraries of tables are not imported: pandas is recognised by its methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Final

import numpy as np
import pyarrow as pa

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read.parquet_columns import values_of

SLICE_ROWS: Final = 32
"""Rows of an Arrow table that are made Python values at once: they hold the encoded images."""


class Table(ABC):
    """A table of a caller. It is only read."""

    @property
    @abstractmethod
    def schema(self) -> Any:
        """The Arrow schema of the columns; that of Python values follows from the first value of each."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, names: Sequence[str], start: int, stop: int) -> Iterator[Json]:
        """Yield some columns of the rows from `start` to `stop`, exclusive, as Python values."""

    @abstractmethod
    def with_columns(self, added: Any) -> Any:
        """Return the caller's table with the columns of an Arrow table of as many rows, in the form that it has."""


def table_of(table: Any) -> Table:
    """Return the table that a caller has. Raise InputError for anything else."""
    if isinstance(table, (pa.Table, pa.RecordBatch)):
        return ArrowTable(table)
    if isinstance(table, Mapping):
        return ColumnTable(table)
    if all(hasattr(table, name) for name in ("columns", "assign", "iloc")):
        return FrameTable(table)
    is_list = isinstance(table, Sequence) and not isinstance(table, (str, bytes))
    if is_list and all(isinstance(row, Mapping) for row in table):
        return RowTable(table)
    raise InputError(
        "expected a pyarrow.Table, a pandas DataFrame, a list of dicts or a dict of columns, got "
        f"{'a list of other values' if isinstance(table, list) else type(table).__name__}"
    )


class ArrowTable(Table):
    """A table or a batch of Arrow."""

    def __init__(self, table: Any) -> None:
        self._table = table

    @property
    def schema(self) -> Any:
        """See `Table.schema`. A column of nulls alone may hold texts."""
        schema = self._table.schema
        for index, field in enumerate(schema):
            if pa.types.is_null(field.type):
                schema = schema.set(index, field.with_type(pa.string()))
        return schema

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def rows(self, names: Sequence[str], start: int, stop: int) -> Iterator[Json]:
        """See `Table.rows`."""
        for first in range(start, stop, SLICE_ROWS):
            part = self._table.slice(first, min(SLICE_ROWS, stop - first))
            for values in zip(*(values_of(part.column(name)) for name in names), strict=True):
                yield dict(zip(names, values, strict=True))

    def with_columns(self, added: Any) -> Any:
        """See `Table.with_columns`."""
        table = self._table
        schema = pa.schema([*table.schema, *added.schema], metadata=table.schema.metadata)
        if isinstance(table, pa.Table):
            return pa.Table.from_arrays([*table.columns, *added.columns], schema=schema)
        arrays = [pa.concat_arrays(column.chunks) for column in added.columns]
        return pa.RecordBatch.from_arrays([*table.columns, *arrays], schema=schema)


class ColumnTable(Table):
    """A dict of columns, each a list or an array of equal length."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns
        lengths = {len(columns[name]) for name in columns}
        if len(lengths) > 1:
            raise InputError(f"expected columns of equal length, got {sorted(lengths)}")
        self._length = lengths.pop() if lengths else 0

    @property
    def schema(self) -> Any:
        """See `Table.schema`."""
        return pa.schema([(name, _kind_of(self._columns[name])) for name in self._columns])

    def __len__(self) -> int:
        return self._length

    def rows(self, names: Sequence[str], start: int, stop: int) -> Iterator[Json]:
        """See `Table.rows`."""
        columns = [self._columns[name] for name in names]
        for number in range(start, stop):
            yield {name: plain(column[number]) for name, column in zip(names, columns, strict=True)}

    def with_columns(self, added: Any) -> Any:
        """See `Table.with_columns`."""
        columns: Any = copy(self._columns)
        for name in added.schema.names:
            columns[name] = added[name].to_pylist()
        return columns


class RowTable(ColumnTable):
    """A list of rows, each a dict."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        names = dict.fromkeys(name for row in rows for name in row)
        super().__init__({name: [row.get(name) for row in rows] for name in names})
        self._rows = rows
        self._length = len(rows)

    def with_columns(self, added: Any) -> Any:
        """See `Table.with_columns`."""
        return [{**row, **new} for row, new in zip(self._rows, added.to_pylist(), strict=True)]


class FrameTable(ColumnTable):
    """A DataFrame of pandas."""

    def __init__(self, frame: Any) -> None:
        super().__init__({name: frame[name].tolist() for name in frame.columns if isinstance(name, str)})
        self._frame = frame
        self._length = len(frame)

    def with_columns(self, added: Any) -> Any:
        """See `Table.with_columns`."""
        frame = self._frame.copy(deep=False)
        for name in added.schema.names:
            values = np.empty(len(frame), object)
            values[:] = added[name].to_pylist()
            frame[name] = values
        return frame


def plain(value: Any) -> Any:
    """Return a cell as the readers know it: lists of Python values, and None for a number that is none.

    Images, which are arrays of three axes, stay.
    """
    if isinstance(value, np.ndarray):
        return value if value.ndim > 1 else [plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, float) and np.isnan(value):
        return None
    return value


def _kind_of(values: Any) -> Any:
    """Return the Arrow type of Python values by the first that is there; text where none is."""
    value = next((value for item in values if (value := plain(item)) is not None), None)
    if isinstance(value, list):
        items = [item for cell in map(plain, values) if isinstance(cell, list) for item in cell]
        return pa.list_(_kind_of(items))
    if isinstance(value, Mapping):
        return pa.struct([(str(name), _scalar_kind(value[name])) for name in value])
    return _scalar_kind(value)


def _scalar_kind(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return pa.string()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    is_image = isinstance(value, (bytes, np.ndarray)) or hasattr(value, "getbands")  # of Pillow
    return pa.binary() if is_image else pa.null()
