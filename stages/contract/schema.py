"""The columns of a dataset as data, and the rows of records in them.

`data/*.parquet` holds one row per input sample: the columns of `DATASET_FIELDS`, with
`output.heat_maps` those of `HEAT_MAP_FIELDS`, and with `output.embed_images` the `IMAGE_FIELD`.
The entries of its lists have the fields of `ENTRIES`. Each has an Arrow type, a source, a unit
and a meaning; the last two are in the metadata of the shards, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from phrasebox.stages.contract.errors import RowError, SchemaError
from phrasebox.stages.contract.levels import quantise
from phrasebox.stages.contract.records import (
    Absent,
    HeatMap,
    ImageRef,
    Phrase,
    Record,
    Region,
    Rle,
    Sample,
    stable_id,
)
from phrasebox.stages.contract.values import Json

SCHEMA_VERSION: Final = 2
"""Goes up when a column, or a key of dataset.json, is added, goes away, or changes its type or its meaning.
`schema_versions` lifts datasets of the versions before."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column, or one field of the entries in a list.

    Attributes:
        kind: The Arrow type.
        unit: The unit of its values, or their range; "" if they have none.
        doc: The meaning.
        source: The attribute of a record, or of an entry of a list, that holds the value; or a
            function.
        optional: Whether a sound row may hold null.
    """

    name: str
    kind: Any
    unit: str
    doc: str
    source: str | Callable[[Any], Any]
    optional: bool = False

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


def _entries(record: Record, places: Iterable[Region | Absent]) -> Iterator[_Entry]:
    for number, about in enumerate(places):
        yield _Entry(record, record.phrases[about.phrase_index], about, number)


def _rle(entry: Any) -> Json:
    return {"size": entry.about.mask.size_hw, "counts": entry.about.mask.counts}


def _stored_levels(entry: Any) -> bytes | None:
    levels = None if entry.about.fault else quantise(entry.about.values)
    return None if levels is None else levels.tobytes()


def _image(record: Record) -> Json | None:
    """Return the image; null in a row with an error, and without bytes: readers would open its name as a path."""
    image = record.sample.image
    has_image = image.content is not None and record.error is None
    return {"bytes": image.content, "path": image.file_name} if has_image else None


_FAULTS = {
    "": "no part of its heat map passed the cleaning",
    "constant": "the similarity of all patches is the same",
    "empty": "its heat map is zero everywhere",
    "not_finite": "its heat map is not finite",
    "no_map": "the source of regions has no box of that name",
}


def _warnings(record: Record) -> list[str]:
    if record.error is not None:
        return []
    entries: tuple[Region | Absent, ...] = (*record.regions, *record.absent)
    texts = {record.phrases[entry.phrase_index].text for entry in entries}
    faults = {heat_map.text: heat_map.fault for heat_map in record.heat_maps}
    missing = [
        text for text in dict.fromkeys(phrase.text for phrase in record.phrases) if text not in texts
    ]
    # Heat maps are for all phrases or, with another source of regions, for no phrase.
    default = "" if faults else "no_map"
    warnings = [
        *record.notes,
        *(f"no region for {text!r}: {_FAULTS[faults.get(text, default)]}" for text in missing),
    ]
    if record.dropped_phrases:
        warnings.append(f"{record.dropped_phrases} phrases over the limit per image were dropped")
    return warnings


_INT: Final = pa.int32()
_LONG: Final = pa.int64()
_FLOAT: Final = pa.float32()
_TEXT: Final = pa.string()
_INTS: Final = pa.list_(_INT)
_RLE: Final = pa.struct([("size", _INTS), ("counts", _TEXT)])
_SHARE: Final = "0 .. 1"
_COSINE: Final = "-1 .. 1"
_UNIQUE: Final = "unique in the dataset, 1 .. 2^53 - 1"
_CATEGORY: Final = "hash of the phrase; names in categories.parquet"
_LIKELY: Final = "probability that the phrase is in the image"
_SCORE: Final = (
    "with a calibration, probability that the phrase is in the image and the box is right (IoU >= "
    "0.5); otherwise a number that only ranks"
)
_NO_PRESENCE: Final = "null without a calibration that knows presence, and for given boxes"
_SPAN: Final = "[start, end) in that caption; [0, 0) in caption 0 if no caption says it"
_GROUP: Final = (
    "number of the object within the image, the same for phrases that name one object; null if unknown"
)
_SHIFT: Final = "how far right of and below the cells' centres the values lie"
_PIXELS: Final = "uint8, row by row, lowest to highest heat; null without heat"
_FALLBACK: Final = (
    "null, or why the contour was kept: colours, image, not_finite, empty, beside (the heat), size"
)
_CAPTION_SCORE: Final = (
    "for each caption the mean of its cosine with the image and of those of its phrases: low for a "
    "caption of another image; null for one without words, and none for regions from another "
    "source than heat maps"
)
_CAPTION_LANGUAGE: Final = (
    "for each caption the code of the language in which it was parsed, as en, or of one that is left out the "
    "language it is in; empty if no caption was read"
)
_CAPTION_PRESENCE: Final = (
    "for each caption what presence is for the phrase of a heat map; null where it is not known"
)
_BOX_OF: Final = (
    "mask; learned: a calibration's box where it has less than 0.9 IoU with the mask's; "
    "given: a box of the input"
)
_WRONG: Final = "null, or what is wrong, where, and what to do"

_PHRASE: Final = (
    Column("phrase", _TEXT, "", "normalised text", "phrase.text"),
    Column("head", _TEXT, "", "lemma of the head noun; clothing for a colour that is worn", "phrase.head"),
    Column("caption_index", _INT, "", "which caption", "phrase.caption_index"),
    Column("span", _INTS, "characters", _SPAN, lambda entry: (entry.phrase.start, entry.phrase.end)),
)
_SIMILARITY: Final = Column("similarity", _FLOAT, _COSINE, "cosine of image and phrase", "about.similarity")
_PRESENCE: Final = Column("presence", _FLOAT, _SHARE, f"{_LIKELY}; {_NO_PRESENCE}", "about.presence", True)

ENTRIES: Final[dict[str, tuple[Column, ...]]] = {  # Column -> the fields of the entries in its lists
    "annotations": (
        Column(
            "id",
            _LONG,
            "",
            _UNIQUE,
            lambda entry: stable_id(f"{entry.record.sample.sample_id}\n{entry.number}"),
        ),
        Column("image_id", _LONG, "", "the row's id", "record.sample.id"),
        Column("category_id", _LONG, "", _CATEGORY, lambda entry: stable_id(entry.phrase.text)),
        Column("bbox", pa.list_(_FLOAT), "px", "[x, y, w, h], half open, see bbox_of", "about.box_xywh_px"),
        Column("bbox_of", _TEXT, "", _BOX_OF, "about.box_of"),
        Column("area", _LONG, "px", "pixels of the mask", "about.area_px"),
        Column("segmentation", _RLE, "px", "COCO compressed run lengths; size is [h, w]", _rle),
        Column("iscrowd", pa.int8(), "", "always 0", lambda _: 0),
        *_PHRASE,
        Column("score", _FLOAT, _SHARE, _SCORE, "about.score"),
        _SIMILARITY,
        _PRESENCE,
        Column("group", _INT, "", _GROUP, "about.group", True),
        Column(
            "refined",
            _TEXT,
            "",
            "what drew the mask's boundary: none (the heat's contour), grabcut or sam",
            "about.refined",
        ),
        Column("fallback", _TEXT, "", _FALLBACK, "about.fallback", True),
    ),
    "absent": (*_PHRASE, Column("presence", _FLOAT, _SHARE, _LIKELY, "about.presence"), _SIMILARITY),
    "phrases": (
        *_PHRASE,
        Column("plural", pa.bool_(), "", "whether the phrase names several objects", "phrase.plural"),
    ),
    "heat_maps": (
        Column("phrase", _TEXT, "", "normalised text", "about.text"),
        Column(
            "size", _INTS, "cells", "[h, w] of the grid, which covers the whole image", "about.values.shape"
        ),
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

    def values(record: Record) -> list[Json]:
        return [{inner: get(entry) for inner, get in getters} for entry in entries(record)]

    return Column(name, pa.list_(_struct(ENTRIES[name])), "", doc, values)


ANNOTATION: Final = _struct(ENTRIES["annotations"])  # One region of one phrase

DATASET_FIELDS: Final = (  # The columns that every dataset has
    Column("id", _LONG, "", "image id, hash of sample_id in 1 .. 2^53 - 1", "sample.id"),
    Column(
        "sample_id",
        _TEXT,
        "",
        "given by the user or derived from the place in the input",
        "sample.sample_id",
    ),
    Column(
        "file_name", _TEXT, "", "the image, relative to the image root or tar", "sample.image.file_name"
    ),
    Column("width", _INT, "px", "after EXIF rotation; 0 if unknown", "width_px"),
    Column("height", _INT, "px", "after EXIF rotation; 0 if unknown", "height_px"),
    Column("captions", pa.list_(_TEXT), "", "untouched", "sample.captions"),
    Column("caption_language", pa.list_(_TEXT), "", _CAPTION_LANGUAGE, "caption_languages"),
    _list("annotations", "one per region", lambda record: _entries(record, record.regions)),
    _list(
        "absent", "phrases judged not to be in the image", lambda record: _entries(record, record.absent)
    ),
    Column("caption_score", pa.list_(_FLOAT), _COSINE, _CAPTION_SCORE, "caption_scores"),
    Column("phrase_count", _INT, "", "phrases found in the captions", lambda record: len(record.phrases)),
    Column("warnings", pa.list_(_TEXT), "", "phrases without a region and why, dropped phrases", _warnings),
    Column(
        "error",
        _TEXT,
        "",
        "null, or the reason of the fault",
        lambda record: record.error and record.error.reason,
        True,
    ),
    Column("error_detail", _TEXT, "", _WRONG, lambda record: record.error and record.error.detail, True),
)

HEAT_MAP_FIELDS: Final = (  # Columns that a dataset has with `output.heat_maps`
    _list(
        "phrases",
        "all phrases, also those without a region",
        lambda record: [_Entry(record, p) for p in record.phrases],
    ),
    _list(
        "heat_maps",
        "one per different phrase, in levels",
        lambda record: [_Entry(record, about=m) for m in record.heat_maps],
    ),
    Column("caption_presence", pa.list_(_FLOAT), _SHARE, _CAPTION_PRESENCE, "caption_presences"),
)

_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", _TEXT)])
IMAGE_FIELD: Final = Column(
    "image", _IMAGE, "", "the encoded image as it was read; null with an error", _image, True
)

OPTIONAL_FIELDS: Final = (
    *HEAT_MAP_FIELDS,
    IMAGE_FIELD,
)  # Those of some datasets, in their order behind the others
DATASET_SCHEMA: Final = pa.schema(
    [column.arrow for column in DATASET_FIELDS]
)  # Without the optional columns


ColumnOption = Literal["heat_maps", "image"]
"""`heat_maps` stands for all of `HEAT_MAP_FIELDS`, `image` for `IMAGE_FIELD`."""


def _columns(options: Collection[ColumnOption]) -> tuple[Column, ...]:
    columns: tuple[Column, ...] = (
        (*DATASET_FIELDS, *HEAT_MAP_FIELDS) if "heat_maps" in options else DATASET_FIELDS
    )
    return (*columns, IMAGE_FIELD) if "image" in options else columns


def dataset_schema(options: Collection[ColumnOption] = ()) -> Any:
    """Return the Arrow schema of the shards. options: The optional columns."""
    return pa.schema([column.arrow for column in _columns(options)])


def records_to_rows(records: Iterable[Record], options: Collection[ColumnOption] = ()) -> Any:
    """Return finished records as a table of `dataset_schema`, one row each, in order.

    >>> sample = Sample(sample_id="a", source="in.jsonl:1", captions=("a red car",))
    >>> rows = records_to_rows([Record.start(sample)])
    >>> rows.num_rows, rows["captions"].to_pylist()
    (1, [['a red car']])
    """
    getters = [(column.name, column.get) for column in _columns(options)]
    rows = [{name: get(record) for name, get in getters} for record in records]
    return pa.Table.from_pylist(rows, schema=dataset_schema(options))


def rle_of(annotation: Mapping[str, Any]) -> Rle:
    """Return the mask of an annotation; its counts are not checked."""
    segmentation = annotation["segmentation"]
    return Rle(size_hw=tuple(segmentation["size"]), counts=segmentation["counts"])


def is_said(entry: Mapping[str, Any]) -> bool:
    """Return whether a caption says the phrase of an annotation; concepts of a pool have an empty span."""
    return (entry["caption_index"], *entry["span"]) != (0, 0, 0)


def mapped_record(row: Mapping[str, Any]) -> Record:
    """Return the record of a row with `HEAT_MAP_FIELDS`, as it was before its regions were cut.

    The maps are in levels, which give the same regions; a map without heat is all zeros. The
    row may lack `annotations`, `absent` and `warnings`. Raise SchemaError if a map does not
    fill its grid.
    """
    sample_id = row["sample_id"]
    languages = row.get("caption_language") or ()
    image = ImageRef(file_name=row["file_name"])
    phrases = (
        Phrase(
            text=stored["phrase"],
            caption_index=stored["caption_index"],
            start=stored["span"][0],
            end=stored["span"][1],
            head=stored["head"],
            plural=stored["plural"],
            language=languages[stored["caption_index"]] if languages else "en",
        )
        for stored in row["phrases"]
    )
    return Record(
        sample=Sample(sample_id=sample_id, source=sample_id, captions=tuple(row["captions"]), image=image),
        width_px=row["width"],
        height_px=row["height"],
        caption_languages=tuple(languages),
        phrases=tuple(phrases),
        heat_maps=tuple(_heat_map(stored, sample_id) for stored in row["heat_maps"]),
        caption_presences=tuple(map(_unrounded, row.get("caption_presence") or ())),
        error=None
        if row["error"] is None
        else RowError(reason=row["error"], detail=row["error_detail"] or ""),
    )


def _heat_map(stored: Mapping[str, Any], sample_id: str) -> HeatMap:
    h, w = stored["size"]
    levels = None if stored["levels"] is None else np.frombuffer(stored["levels"], np.uint8)
    if min(h, w) < 1 or (levels is not None and levels.size != h * w):
        cells = "no" if levels is None else levels.size
        raise SchemaError(
            f"{sample_id}: the heat map of {stored['phrase']!r} has {cells} levels for {h} x {w} cells"
        )
    return HeatMap(
        text=stored["phrase"],
        values=np.zeros((h, w), np.float32) if levels is None else levels.reshape(h, w).astype(np.float32),
        similarity=stored["similarity"],
        shift_cells=stored["shift_cells"],
        presence=_unrounded(stored["presence"]),
    )


def _unrounded(presence: float | None) -> float | None:
    """The presence before it was stored in 32 bits: scores depend on it."""
    return None if presence is None else round(presence, 6)
