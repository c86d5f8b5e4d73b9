"""Versions of the dataset's schema, and how shards of older ones are read as those of today.

- 1: `error` held "reason: detail".
- 2: without `absent`, without `presence` and `group` of annotations, and without `presence` of heat maps.
- 3: without `importance` of annotations, of `absent` and of phrases.
- 4: `area` of annotations was float32.
- 5: today's, see `stages.contract.schema`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.schema import ABSENT_FIELD, DATASET_SCHEMA, OPTIONAL_FIELDS

SCHEMA_VERSION: Final = 5
"""Goes up when a column is added, changes its type or its meaning, or goes away."""

READABLE_VERSIONS: Final = (1, 2, 3, 4, 5)
"""Versions of datasets that `read_batches` reads."""

_LATER: Final = {"error_detail": 2, ABSENT_FIELD.name: 3}
"""Column -> the version that brought it."""

_LATER_INSIDE: Final = {
    "annotations": {"presence": 3, "group": 3, "importance": 4},
    "absent": {"importance": 4},
    "phrases": {"importance": 4},
    "heat_maps": {"presence": 3},
}
"""Column of structs -> field -> the version that brought it."""

_AREA_BEFORE: Final = (5, pa.float32())
"""The version that brought the type of `area` in annotations, and the type before."""

_FIELDS: Final = {field.name: field for field in (*DATASET_SCHEMA, *OPTIONAL_FIELDS)}

_OLD_ERROR: Final = r"(?s)^(?P<error>.*?)(?:: (?P<error_detail>.*))?$"

_WHOLE: Final[tuple[str, ...]] = ()


def other_version(version: object) -> str:
    """What to say of a dataset whose version is none of `READABLE_VERSIONS`."""
    *first, last = map(str, READABLE_VERSIONS)
    return f"schema version {version}, this phrasebox reads {', '.join(first)} and {last}"


def schema_of(version: int) -> list[Any]:
    """The columns that every shard of one of `READABLE_VERSIONS` has, as fields."""
    return [field_of(field, version) for field in DATASET_SCHEMA if _LATER.get(field.name, 1) <= version]


def field_of(field: Any, version: int) -> Any:
    """A column of today as one of `READABLE_VERSIONS` had it."""
    later = _LATER_INSIDE.get(field.name)
    if later is None:
        return field
    whole, before = _AREA_BEFORE
    fields = [
        inner.with_type(before) if inner.name == "area" and version < whole else inner
        for inner in field.type.value_type
        if later.get(inner.name, 1) <= version
    ]
    return field.with_type(pa.list_(pa.struct(fields)))


def read_batches(shard: Any, columns: Sequence[str], **options: Any) -> Iterator[Any]:
    """Rows of a shard of any of `READABLE_VERSIONS` as tables, with the columns of today's version.

    Columns and fields that an older version lacks are null; lists of rows are empty.

    Args:
        shard: the open pyarrow ParquetFile.
        columns: names of columns, or dotted paths into them as Parquet knows them
            ("annotations.list.element.score").
        options: of `ParquetFile.iter_batches`.
    """
    stored_names = shard.schema_arrow.names
    has_old_error = "error_detail" not in stored_names
    asked = dict.fromkeys("error" if has_old_error and name == "error_detail" else name for name in columns)
    targets = {name: _pruned(_FIELDS[name].type, paths) for name, paths in _by_column(asked).items() if name in _FIELDS}
    stored, extra = _stored(shard, asked)
    for batch in shard.iter_batches(columns=stored, **options):
        table = pa.Table.from_batches([batch])
        for name, kind in targets.items():
            if name not in stored_names:
                table = table.append_column(pa.field(name, kind), _without_values(kind, table.num_rows))
            elif table.schema.field(name).type != kind:
                place = table.column_names.index(name)
                table = table.set_column(place, pa.field(name, kind), _filled(table[name].combine_chunks(), kind))
        table = table.drop_columns(extra)
        if has_old_error and "error" in table.column_names:
            parts = pc.extract_regex(table["error"], _OLD_ERROR)
            table = table.drop_columns(["error"])
            for name in ("error", "error_detail"):
                table = table.append_column(DATASET_SCHEMA.field(name), pc.struct_field(parts, name))
        yield table


def _by_column(paths: Iterable[str]) -> dict[str, list[tuple[str, ...]]]:
    """Column -> the paths below it that are asked for; `_WHOLE` for all of it."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        name, *below = path.split(".")
        found.setdefault(name, []).append(tuple(below))
    return found


def _stored(shard: Any, asked: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths to read from a shard that may lack some of those asked for, and the columns to drop afterwards."""
    schema = shard.metadata.schema
    leaves = [schema.column(index).path for index in range(len(schema))]
    paths: list[str] = []
    for path in asked:
        if any(leaf == path or leaf.startswith(f"{path}.") for leaf in leaves):
            paths.append(path)
    named = {path.partition(".")[0] for path in paths}
    # Of a list, one stored field has to be read to know how long it is.
    for name in dict.fromkeys(path.partition(".")[0] for path in asked):
        if name not in named:
            paths += [leaf for leaf in leaves if leaf.startswith(f"{name}.")][:1]
    if paths:
        return paths, []
    return [leaves[0]], [leaves[0].partition(".")[0]]


def _pruned(kind: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """The type with only the fields of structs that paths such as ("list", "element", "score") lead to."""
    if any(path == _WHOLE for path in paths):
        return kind
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_pruned(kind.value_type, [path[2:] for path in paths])))
    if not pa.types.is_struct(kind):
        return kind
    below = {field.name: [path[1:] for path in paths if path[0] == field.name] for field in kind}
    return pa.struct([field.with_type(_pruned(field.type, below[field.name])) for field in kind if below[field.name]])


def _filled(array: Any, kind: Any) -> Any:
    """The array in another type: fields that its structs lack are null, and those that `kind` lacks are left out."""
    if pa.types.is_list(kind) and pa.types.is_list(array.type):
        values = _filled(array.values, kind.value_type)
        mask = array.is_null() if array.null_count else None
        return pa.ListArray.from_arrays(array.offsets, values, type=_with_values(kind, values.type), mask=mask)
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        own = {field.name: number for number, field in enumerate(array.type)}
        parts = [
            _filled(array.field(own[field.name]), field.type) if field.name in own else pa.nulls(len(array), field.type)
            for field in kind
        ]
        fields = [field.with_type(part.type) for field, part in zip(kind, parts, strict=True)]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=array.is_null() if array.null_count else None)
    return array.cast(kind)


def _with_values(kind: Any, values: Any) -> Any:
    return pa.list_(kind.value_field.with_type(values))


def _without_values(kind: Any, rows: int) -> Any:
    if not pa.types.is_list(kind):
        return pa.nulls(rows, kind)
    offsets = pa.array(np.zeros(rows + 1, np.int32))
    return pa.ListArray.from_arrays(offsets, pa.nulls(0, kind.value_type), type=kind)
