"""The columns of a dataset as data, rows of records in them, and records as Arrow tables between workers.

`data/*.parquet` holds one row per input sample: the columns of `DATASET_FIELDS`, with `output.heat_maps` those of
`HEAT_MAP_FIELDS`, and with `output.embed_images` the `IMAGE_FIELD`. The entries of its lists have the fields of
`ENTRIES`. Each has an Arrow type, a unit and a meaning, which are in the metadata of the shards too, and a source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import chain, pairwise, repeat
from math import prod
from operator import attrgetter, is_
from types import UnionType
from typing import Any, Final, cast, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.contract.errors import RowError, SchemaError
from stages.contract.levels import quantise
from stages.contract.records import Absent, HeatMap, ImageRef, Phrase, Record, Region, Sample, stable_id

SCHEMA_VERSION: Final = 1  # Goes up when a column is added, goes away, or changes its type or its meaning


def check_version(place: object, version: object) -> None:
    """Raise SchemaError for a dataset of another schema version."""
    if version != SCHEMA_VERSION:
        advice = "make the dataset again, with the same command and --fresh"
        raise SchemaError(f"{place}: schema version {version}, this phrasebox reads {SCHEMA_VERSION}: {advice}")


@dataclass(frozen=True, slots=True)
class Column:
    """One column, or one field of the entries in a list."""

    name: str
    kind: Any  # the Arrow type
    unit: str  # the unit of its values, or their range; "" if they have none
    doc: str  # the meaning
    source: str | Callable[[Any], Any]  # attribute of a record, or of an entry of a list, that holds it; or a function
    optional: bool = False  # whether a sound row may hold null

    @property
    def arrow(self) -> Any:
        """The Arrow field."""
        return pa.field(self.name, self.kind, metadata={"unit": self.unit, "doc": self.doc})

    @property
    def get(self) -> Callable[[Any], Any]:
        """The function that returns the value."""
        return attrgetter(self.source) if isinstance(self.source, str) else self.source


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a list: the region, absence or heat map, its phrase, and its number in the list."""

    record: Record
    phrase: Phrase | None = None
    about: Any = None
    number: int = 0


def _placed(record: Record, places: Iterable[Region | Absent]) -> Iterator[_Entry]:
    for number, about in enumerate(places):
        yield _Entry(record, record.phrases[about.phrase_index], about, number)


def _rle(entry: Any) -> dict[str, Any]:
    return {"size": entry.about.mask.size_hw, "counts": entry.about.mask.counts}


def _stored_levels(entry: Any) -> bytes | None:
    levels = None if entry.about.fault else quantise(entry.about.values)
    return None if levels is None else levels.tobytes()


def _image(record: Record) -> dict[str, Any] | None:
    """The image; null without bytes, or readers would open a path that is only a name, and in a row with an error."""
    image = record.sample.image
    has_image = image.content is not None and record.error is None
    return {"bytes": image.content, "path": image.file_name} if has_image else None


_FAULTS = {
    "": "no part of its heat map passed the cleaning",
    "constant": "the similarity of all patches is the same",
    "empty": "its heat map is zero everywhere",
    "non_finite": "its heat map is not finite",
    "no_map": "the source of regions has no box of that name",
}


def _warnings(record: Record) -> list[str]:
    if record.error is not None:
        return []
    known: tuple[Region | Absent, ...] = (*record.regions, *record.absent)
    placed = {record.phrases[entry.phrase_index].text for entry in known}
    faults = {heat_map.text: heat_map.fault for heat_map in record.heat_maps}
    missing = [text for text in dict.fromkeys(phrase.text for phrase in record.phrases) if text not in placed]
    # Heat maps are for all phrases or, with another source of regions, for no phrase.
    other = "" if faults else "no_map"
    warnings = [*record.notes, *(f"no region for {text!r}: {_FAULTS[faults.get(text, other)]}" for text in missing)]
    if record.dropped_phrases:
        warnings.append(f"{record.dropped_phrases} phrases over the limit per image were dropped")
    return warnings


_INT, _LONG, _FLOAT, _TEXT = pa.int32(), pa.int64(), pa.float32(), pa.string()
_INTS: Final = pa.list_(_INT)
_RLE: Final = pa.struct([("size", _INTS), ("counts", _TEXT)])
_SHARE, _COSINE = "0 .. 1", "-1 .. 1"
_UNIQUE: Final = "unique in the dataset, 1 .. 2^53 - 1"
_CATEGORY: Final = "hash of the phrase; names in categories.parquet"
_LIKELY: Final = "probability that the phrase is in the image"
_SPAN: Final = "[start, end) in that caption; [0, 0) in caption 0 if no caption says it"
_GROUP: Final = "number of the thing within the image, the same for phrases that name one thing; null if unknown"
_SHIFT: Final = "how far right of and below the cells' centres the values lie"
_PIXELS: Final = "uint8, row by row, lowest to highest heat; null without heat"
_FALLBACK: Final = "null, or why the contour was kept: colours, not_finite, empty, beside (the heat), size"
_WRONG: Final = "null, or what is wrong, where, and what to do"

_PHRASE: Final = (
    Column("phrase", _TEXT, "", "normalised text", "phrase.text"),
    Column("head", _TEXT, "", "lemma of the head noun", "phrase.head"),
    Column("caption_index", _INT, "", "which caption", "phrase.caption_index"),
    Column("span", _INTS, "characters", _SPAN, lambda entry: (entry.phrase.start, entry.phrase.end)),
)
_SIMILARITY: Final = Column("similarity", _FLOAT, _COSINE, "cosine of image and phrase", "about.similarity")
_PRESENCE: Final = Column("presence", _FLOAT, _SHARE, f"{_LIKELY}; null if unknown", "about.presence", True)

ENTRIES: Final[dict[str, tuple[Column, ...]]] = {  # Column -> the fields of the entries in its lists
    "annotations": (
        Column("id", _LONG, "", _UNIQUE, lambda entry: stable_id(f"{entry.record.sample.sample_id}\n{entry.number}")),
        Column("image_id", _LONG, "", "the row's id", "record.sample.id"),
        Column("category_id", _LONG, "", _CATEGORY, lambda entry: stable_id(entry.phrase.text)),
        Column("bbox", pa.list_(_FLOAT), "px", "[x, y, w, h], half open, of the mask", "about.box_xywh_px"),
        Column("area", _LONG, "px", "pixels of the mask", "about.area_px"),
        Column("segmentation", _RLE, "px", "COCO compressed run lengths; size is [h, w]", _rle),
        Column("iscrowd", pa.int8(), "", "always 0", lambda _: 0),
        *_PHRASE,
        Column("score", _FLOAT, _SHARE, "see stages/regions/score.py", "about.score"),
        _SIMILARITY,
        _PRESENCE,
        Column("group", _INT, "", _GROUP, "about.group", True),
        Column(
            "refined", _TEXT, "", "what drew the outline: none (the heat's contour), grabcut or sam", "about.refined"
        ),
        Column("fallback", _TEXT, "", _FALLBACK, "about.fallback", True),
    ),
    "absent": (*_PHRASE, Column("presence", _FLOAT, _SHARE, _LIKELY, "about.presence"), _SIMILARITY),
    "phrases": (
        *_PHRASE,
        Column("plural", pa.bool_(), "", "whether the phrase names several things", "phrase.plural"),
    ),
    "heat_maps": (
        Column("phrase", _TEXT, "", "normalised text", "about.text"),
        Column("size", _INTS, "cells", "[h, w] of the grid, which covers the whole image", "about.values.shape"),
        Column("levels", pa.binary(), "0 .. 255", _PIXELS, _stored_levels, True),
        Column("shift_cells", pa.float64(), "cells", _SHIFT, "about.shift_cells"),
        _SIMILARITY,
        _PRESENCE,
    ),
}


def _struct(columns: Iterable[Column]) -> Any:
    return pa.struct([column.arrow for column in columns])


def _list(name: str, doc: str, entries: Callable[[Record], Iterable[_Entry]]) -> Column:
    getters = [(column.name, column.get) for column in ENTRIES[name]]

    def values(record: Record) -> list[dict[str, Any]]:
        return [{inner: get(entry) for inner, get in getters} for entry in entries(record)]

    return Column(name, pa.list_(_struct(ENTRIES[name])), "", doc, values)


ANNOTATION: Final = _struct(ENTRIES["annotations"])  # One region of one phrase

DATASET_FIELDS: Final = (  # The columns that every dataset has
    Column("id", _LONG, "", "image id, hash of sample_id in 1 .. 2^53 - 1", "sample.id"),
    Column("sample_id", _TEXT, "", "given by the user or derived from the place in the input", "sample.sample_id"),
    Column("file_name", _TEXT, "", "the image, relative to the image root or tar", "sample.image.file_name"),
    Column("width", _INT, "px", "after EXIF rotation; 0 if unknown", "width_px"),
    Column("height", _INT, "px", "after EXIF rotation; 0 if unknown", "height_px"),
    Column("captions", pa.list_(_TEXT), "", "untouched", "sample.captions"),
    _list("annotations", "one per region", lambda record: _placed(record, record.regions)),
    _list("absent", "phrases judged not to be in the image", lambda record: _placed(record, record.absent)),
    Column("phrase_count", _INT, "", "phrases found in the captions", lambda record: len(record.phrases)),
    Column("warnings", pa.list_(_TEXT), "", "phrases without a region and why, dropped phrases", _warnings),
    Column("error", _TEXT, "", "null, or the reason of the fault", lambda one: one.error and one.error.reason, True),
    Column("error_detail", _TEXT, "", _WRONG, lambda one: one.error and one.error.detail, True),
)

HEAT_MAP_FIELDS: Final = (  # Columns that a dataset has with `output.heat_maps`
    _list("phrases", "all phrases, also those without a region", lambda one: [_Entry(one, p) for p in one.phrases]),
    _list(
        "heat_maps", "one per different phrase, in levels", lambda one: [_Entry(one, about=m) for m in one.heat_maps]
    ),
)

_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", _TEXT)])
IMAGE_FIELD: Final = Column("image", _IMAGE, "", "the encoded image as it was read; null with an error", _image, True)

OPTIONAL_FIELDS: Final = (*HEAT_MAP_FIELDS, IMAGE_FIELD)  # Those of some datasets, in their order behind the others
DATASET_SCHEMA: Final = pa.schema([column.arrow for column in DATASET_FIELDS])  # Without the optional columns


def _columns(*, embed_images: bool, heat_maps: bool) -> tuple[Column, ...]:
    maps, images = HEAT_MAP_FIELDS if heat_maps else (), (IMAGE_FIELD,) if embed_images else ()
    return (*DATASET_FIELDS, *maps, *images)


def dataset_schema(*, embed_images: bool, heat_maps: bool = False) -> Any:
    """Return the Arrow schema of the shards."""
    return pa.schema([column.arrow for column in _columns(embed_images=embed_images, heat_maps=heat_maps)])


def records_to_rows(records: Iterable[Record], *, embed_images: bool, heat_maps: bool = False) -> Any:
    """Return finished records as a table of `dataset_schema`, one row each, in order."""
    getters = [(column.name, column.get) for column in _columns(embed_images=embed_images, heat_maps=heat_maps)]
    rows = [{name: get(record) for name, get in getters} for record in records]
    return pa.Table.from_pylist(rows, schema=dataset_schema(embed_images=embed_images, heat_maps=heat_maps))


def is_said(entry: Mapping[str, Any]) -> bool:
    """Return whether a caption says the phrase of an annotation; concepts of a pool have an empty span."""
    return (entry["caption_index"], *entry["span"]) != (0, 0, 0)


def mapped_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a row with `HEAT_MAP_FIELDS`, as it was before its regions were cut.

    The maps are in levels, from which the same regions are cut; one without heat is all zeros. Only `annotations`,
    `absent` and `warnings` are not needed. Raise SchemaError if a map does not fill its grid.
    """
    sample_id = row["sample_id"]
    image = ImageRef(file_name=row["file_name"])
    phrases = (
        Phrase(
            text=stored["phrase"],
            start=stored["span"][0],
            end=stored["span"][1],
            **{name: stored[name] for name in ("head", "caption_index", "plural")},
        )
        for stored in row["phrases"]
    )
    return Record(
        sample=Sample(sample_id=sample_id, source=sample_id, captions=tuple(row["captions"]), image=image),
        width_px=row["width"],
        height_px=row["height"],
        phrases=tuple(phrases),
        heat_maps=tuple(_heat_map(stored, sample_id) for stored in row["heat_maps"]),
        error=None if row["error"] is None else RowError(reason=row["error"], detail=row["error_detail"] or ""),
    )


def _heat_map(stored: Mapping[str, Any], sample_id: str) -> HeatMap:
    h, w = stored["size"]
    levels = None if stored["levels"] is None else np.frombuffer(stored["levels"], np.uint8)
    if min(h, w) < 1 or (levels is not None and levels.size != h * w):
        cells = "no" if levels is None else levels.size
        raise SchemaError(f"{sample_id}: the heat map of {stored['phrase']!r} has {cells} levels for {h} x {w} cells")
    return HeatMap(
        text=stored["phrase"],
        values=np.zeros((h, w), np.float32) if levels is None else levels.reshape(h, w).astype(np.float32),
        similarity=stored["similarity"],
        shift_cells=stored["shift_cells"],
        # As it was before it was stored: scores are made of it.
        presence=None if stored["presence"] is None else round(stored["presence"], 6),
    )


_KINDS: Final = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.large_binary(), bool: pa.bool_()}
_ARRAY: Final = pa.struct([("shape", _INTS), ("data", pa.large_binary())])
_ARRAYS: Final = (np.ndarray, NDArray)  # the origin of NDArray[...] before numpy 2.5, and from then on
_fields: Final[Callable[[Any], dict[str, Any]]] = cache(get_type_hints)  # of a dataclass


def _kind(hint: Any) -> Any:
    """The Arrow type of values with a type hint of the records."""
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


def _packed(values: Sequence[Any], hint: Any) -> Any:
    """Values of the records with a type hint as an Arrow array, column by column; None in the place of any value."""
    if isinstance(hint, UnionType):
        return _packed(values, get_args(hint)[0])
    is_array = get_origin(hint) in _ARRAYS
    if is_dataclass(hint):
        parts = {
            name: _packed([None if value is None else getattr(value, name) for value in values], inner)
            for name, inner in _fields(hint).items()
        }
    elif is_array:
        data = [b"" if value is None else np.ascontiguousarray(value).data.cast("B") for value in values]
        buffers = [None, pa.py_buffer(_starts(data)), pa.py_buffer(b"".join(data))]
        shapes = [() if value is None else value.shape for value in values]
        parts = {
            "shape": pa.ListArray.from_arrays(_starts(shapes, np.int32), np.array([*chain(*shapes)], np.int32)),
            "data": pa.Array.from_buffers(pa.large_binary(), len(values), buffers),
        }
    elif get_origin(hint) is tuple:
        lists = [value or () for value in values]
        return pa.ListArray.from_arrays(_starts(lists, np.int32), _packed([*chain(*lists)], get_args(hint)[0]))
    else:
        return pa.array(values, _KINDS[hint])
    missing = np.array([value is None for value in values], bool)
    return pa.StructArray.from_arrays(parts.values(), parts, mask=pa.array(missing) if missing.any() else None)


def _starts(values: Sequence[Any], kind: type = np.int64) -> Any:
    """Return the offset of each value in the concatenation of all, and its length: (len(values) + 1,)."""
    return np.cumsum([0, *map(len, values)], dtype=kind)


def _unpacked(array: Any, hint: Any) -> list[Any]:
    """Inverse of `_packed`. The bytes of NumPy's arrays are not copied."""
    if isinstance(hint, UnionType):
        return _unpacked(array, get_args(hint)[0])
    origin, made = get_origin(hint), cast(Iterable[Any], ())
    if origin is tuple:
        starts = array.offsets.to_numpy().tolist()
        flat = _unpacked(array.values.slice(starts[0], starts[-1] - starts[0]), get_args(hint)[0])
        return [tuple(flat[start - starts[0] : end - starts[0]]) for start, end in pairwise(starts)]
    if origin in _ARRAYS:
        kind = np.dtype(_scalar(hint))
        shapes, data = _unpacked(array.field("shape"), tuple[int, ...]), array.field("data")
        _, starts, content = data.buffers()
        first = np.frombuffer(starts, np.int64)[data.offset :].tolist()
        made = (
            np.frombuffer(content, kind, prod(shape), start).reshape(shape) if shape else None
            for shape, start in zip(shapes, first, strict=False)
        )
    elif is_dataclass(hint):
        names = _fields(hint)
        columns = [_unpacked(array.field(name), inner) for name, inner in names.items()]
        there = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else repeat(True)
        rows = zip(there, *columns, strict=False)
        made = (cast(Any, hint)(**dict(zip(names, row, strict=True))) if is_there else None for is_there, *row in rows)
    else:
        # The way over NumPy is ten times faster, but turns integers beside null into floats.
        made = array.to_pylist() if array.null_count else array.to_numpy(zero_copy_only=False).tolist()
    return list(made)


RECORD_SCHEMA: Final = pa.schema([("id", pa.int64()), *_kind(Record)])
"""A record on its way between workers: the fields of `Record`, and the sample's id."""


def records_to_table(records: Sequence[Record], given: tuple[Sequence[Record], Any] | None = None) -> Any:
    """Return records as a table of `RECORD_SCHEMA`, one row each, in order.

    given: The records that stages were given for these, and their table: columns that no stage changed are taken of it.
    """
    columns = {}
    for name, hint in _fields(Record).items():
        values = [getattr(record, name) for record in records]
        if given is not None and all(map(is_, values, [getattr(record, name) for record in given[0]])):
            columns[name] = given[1][name]
        else:
            columns[name] = _packed(values, hint)
    columns["id"] = pa.array([record.sample.id for record in records], pa.int64())
    return pa.table({name: columns[name] for name in RECORD_SCHEMA.names}, schema=RECORD_SCHEMA)


def table_to_records(table: Any) -> list[Record]:
    """Return the records of a table as `records_to_table` makes it. Raise SchemaError if columns are missing.

    Their arrays are views of the table's memory.
    """
    missing = [name for name in RECORD_SCHEMA.names if name not in table.column_names]
    if missing:
        raise SchemaError(f"a batch between stages lacks the columns {missing}")
    columns = [
        [value for chunk in table[name].chunks for value in _unpacked(chunk, hint)]
        for name, hint in _fields(Record).items()
    ]
    return [Record(**dict(zip(_fields(Record), row, strict=True))) for row in zip(*columns, strict=True)]
