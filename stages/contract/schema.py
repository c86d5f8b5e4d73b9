"""Records as Arrow tables: on disk (`DATASET_SCHEMA`) and between workers (`RECORD_SCHEMA`).

`data/*.parquet` of a dataset holds one row per input sample:

    id              int64        image id, hash of sample_id in 1 .. 2^53 - 1
    sample_id       string       given by the user or derived from the place in the input
    file_name       string       the image, relative to the image root or tar
    width, height   int32        pixels after EXIF rotation; 0 if the image could not be read
    captions        list<string> untouched
    annotations     list<struct> one per region, COCO's fields and the phrase's
      id            int64        unique in the dataset, 1 .. 2^53 - 1
      image_id      int64        the row's id
      category_id   int64        hash of the phrase; names stand in categories.parquet
      bbox          list<float>  [x, y, w, h] px, half open, of the mask
      area          int64        pixels of the mask
      segmentation  struct       COCO's compressed run lengths: size [h, w], counts
      iscrowd       int8         always 0
      phrase        string       normalised text
      head          string       lemma of its head noun
      caption_index int32        which caption
      span          list<int32>  [start, end): the phrase's words in that caption; [0, 0) of caption 0 if no caption
                                 says it, which only a source of regions with a pool of concepts names
      score         float        0 .. 1, see stages/regions/score.py
      similarity    float        cosine of image and phrase
      presence      float        probability that the phrase is in the image; null without a calibration
      group         int32        number of the thing within the image: phrases with the same number name the same
                                 thing; null in datasets of older versions
      importance    float        share of its caption's importance for the image that falls on its words; null where
                                 nobody asked
    absent          list<struct> phrases judged not to be in the image, which have no annotation
      phrase        string       normalised text
      head          string       lemma of its head noun
      caption_index int32        which caption
      span          list<int32>  [start, end): the phrase's words in that caption
      presence      float        probability that the phrase is in the image
      similarity    float        cosine of image and phrase
      importance    float        as in annotations
    phrase_count    int32        phrases found in the captions and not dropped, before regions, and what a region is
                                 called that no caption says
    warnings        list<string> phrases without a region and why, how many phrases were dropped and why, captions in
                                 another language
    error           string       null, or the reason of the fault, a key of `errors.ROW_ERRORS`
    error_detail    string       null, or what is wrong, where, and what to do
    phrases         list<struct> all phrases, also those without a region; as heat_maps, only with `output.heat_maps`
      phrase        string       normalised text
      head          string       lemma of its head noun
      caption_index int32        which caption
      span          list<int32>  [start, end): the phrase's words in that caption
      plural        bool         whether the phrase names several things
      importance    float        as in annotations
    heat_maps       list<struct> one per different phrase, in their order
      phrase        string       normalised text
      size          list<int32>  [h, w] of the grid in cells; the map covers the whole image
      levels        binary       uint8, row by row: 0 for the map's lowest heat, 255 for its highest; null without heat
      shift_cells   double       how far right of and below the cells' centres the values lie, in cells
      similarity    float        cosine of image and phrase
      presence      float        probability that the phrase is in the image; null without a calibration
    image           struct       bytes and path, null with an error; only with `embed_images`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.contract.errors import RowError, SchemaError
from stages.contract.levels import levels_of
from stages.contract.records import Absent, HeatMap, ImageRef, Phrase, Pixels, Record, Region, Rle, Sample, stable_id


def _field(name: str, kind: Any, unit: str, doc: str, *, nullable: bool = True) -> Any:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit, "doc": doc})


IMPORTANCE: Final = _field(
    "importance", pa.float32(), "0 .. 1", "share of its caption's importance for the image; null if unknown"
)

ANNOTATION: Final = pa.struct(
    [
        _field("id", pa.int64(), "", "unique in the dataset, 1 .. 2^53 - 1"),
        _field("image_id", pa.int64(), "", "the row's id"),
        _field("category_id", pa.int64(), "", "hash of the phrase; names in categories.parquet"),
        _field("bbox", pa.list_(pa.float32()), "px", "[x, y, w, h], half open, of the mask"),
        _field("area", pa.int64(), "px", "pixels of the mask"),
        _field(
            "segmentation",
            pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())]),
            "px",
            "COCO compressed run lengths; size is [h, w]",
        ),
        _field("iscrowd", pa.int8(), "", "always 0"),
        _field("phrase", pa.string(), "", "normalised text"),
        _field("head", pa.string(), "", "lemma of the head noun"),
        _field("caption_index", pa.int32(), "", "which caption"),
        _field("span", pa.list_(pa.int32()), "characters", "[start, end) in that caption; empty if none says it"),
        _field("score", pa.float32(), "0 .. 1", "see stages/regions/score.py"),
        _field("similarity", pa.float32(), "-1 .. 1", "cosine of image and phrase"),
        _field("presence", pa.float32(), "0 .. 1", "probability that the phrase is in the image; null if unknown"),
        _field("group", pa.int32(), "", "number of the thing within the image; null if unknown"),
        IMPORTANCE,
    ]
)
"""One region of one phrase."""

ABSENT: Final = pa.struct(
    [
        _field("phrase", pa.string(), "", "normalised text"),
        _field("head", pa.string(), "", "lemma of the head noun"),
        _field("caption_index", pa.int32(), "", "which caption"),
        _field("span", pa.list_(pa.int32()), "characters", "[start, end) in that caption"),
        _field("presence", pa.float32(), "0 .. 1", "probability that the phrase is in the image"),
        _field("similarity", pa.float32(), "-1 .. 1", "cosine of image and phrase"),
        IMPORTANCE,
    ]
)
"""One phrase of one caption that was judged not to be in the image."""

ABSENT_FIELD: Final = _field("absent", pa.list_(ABSENT), "", "phrases judged not to be in the image")

DATASET_SCHEMA: Final = pa.schema(
    [
        _field("id", pa.int64(), "", "image id, hash of sample_id in 1 .. 2^53 - 1"),
        _field("sample_id", pa.string(), "", "given by the user or derived from the place in the input"),
        _field("file_name", pa.string(), "", "the image, relative to the image root or tar"),
        _field("width", pa.int32(), "px", "after EXIF rotation; 0 if unknown"),
        _field("height", pa.int32(), "px", "after EXIF rotation; 0 if unknown"),
        _field("captions", pa.list_(pa.string()), "", "untouched"),
        _field("annotations", pa.list_(ANNOTATION), "", "one per region"),
        ABSENT_FIELD,
        _field("phrase_count", pa.int32(), "", "phrases found in the captions"),
        _field("warnings", pa.list_(pa.string()), "", "phrases without a region and why, dropped phrases"),
        _field("error", pa.string(), "", "null, or the reason of the fault"),
        _field("error_detail", pa.string(), "", "null, or what is wrong, where, and what to do"),
    ]
)
"""The row of `data/*.parquet` without embedded images."""

STORED_PHRASE: Final = pa.struct(
    [
        _field("phrase", pa.string(), "", "normalised text"),
        _field("head", pa.string(), "", "lemma of the head noun"),
        _field("caption_index", pa.int32(), "", "which caption"),
        _field("span", pa.list_(pa.int32()), "characters", "[start, end) in that caption"),
        _field("plural", pa.bool_(), "", "whether the phrase names several things"),
        IMPORTANCE,
    ]
)
"""One phrase of one caption."""

STORED_HEAT_MAP: Final = pa.struct(
    [
        _field("phrase", pa.string(), "", "normalised text"),
        _field("size", pa.list_(pa.int32()), "cells", "[h, w] of the grid, which covers the whole image"),
        _field("levels", pa.binary(), "0 .. 255", "uint8, row by row, lowest to highest heat; null without heat"),
        _field("shift_cells", pa.float64(), "cells", "how far right of and below the cells' centres the values lie"),
        _field("similarity", pa.float32(), "-1 .. 1", "cosine of image and phrase"),
        _field("presence", pa.float32(), "0 .. 1", "probability that the phrase is in the image; null if unknown"),
    ]
)
"""The heat map of one text, in the levels that its regions were cut from."""

HEAT_MAP_FIELDS: Final = (
    _field("phrases", pa.list_(STORED_PHRASE), "", "all phrases, also those without a region"),
    _field("heat_maps", pa.list_(STORED_HEAT_MAP), "", "one per different phrase, in levels"),
)
"""Columns that a dataset has with `output.heat_maps`."""

IMAGE_FIELD: Final = _field(
    "image",
    pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]),
    "",
    "the encoded image as it was read; null with an error",
)


OPTIONAL_FIELDS: Final = (*HEAT_MAP_FIELDS, IMAGE_FIELD)
"""Columns that a dataset has or not, in their order behind the others."""


def dataset_schema(*, embed_images: bool, heat_maps: bool = False) -> Any:
    """Arrow schema of the shards."""
    maps, images = HEAT_MAP_FIELDS if heat_maps else (), (IMAGE_FIELD,) if embed_images else ()
    return pa.schema([*DATASET_SCHEMA, *maps, *images])


def is_said(entry: Mapping[str, Any]) -> bool:
    """Whether a caption says the phrase of an annotation: what comes of a pool of concepts has an empty span."""
    return (entry["caption_index"], *entry["span"]) != (0, 0, 0)


_ARRAY = pa.struct([("shape", pa.list_(pa.int32())), ("data", pa.binary())])
_IMAGE = pa.struct(
    [
        ("file_name", pa.string()),
        ("url", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("content", pa.binary()),
    ]
)
_PHRASE = pa.struct(
    [
        ("text", pa.string()),
        ("caption_index", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("head", pa.string()),
        ("plural", pa.bool_()),
        ("importance", pa.float64()),
    ]
)
_REGION = pa.struct(
    [
        ("phrase_index", pa.int32()),
        ("box_xywh_px", pa.list_(pa.float64())),
        ("mask", pa.struct([("size_hw", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("area_px", pa.int64()),
        ("score", pa.float64()),
        ("similarity", pa.float64()),
        ("presence", pa.float64()),
        ("group", pa.int32()),
    ]
)
_HEAT_MAP = pa.struct(
    [
        ("text", pa.string()),
        ("values", _ARRAY),
        ("similarity", pa.float32()),
        ("fault", pa.string()),
        ("shift_cells", pa.float64()),
        ("presence", pa.float64()),
    ]
)

RECORD_SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("image", _IMAGE),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("phrases", pa.list_(_PHRASE)),
        ("dropped_phrases", pa.int32()),
        ("unimportant_phrases", pa.int32()),
        ("pixels", _ARRAY),
        ("heat_maps", pa.list_(_HEAT_MAP)),
        ("regions", pa.list_(_REGION)),
        ("notes", pa.list_(pa.string())),
        ("error", pa.struct([("reason", pa.string()), ("detail", pa.string())])),
    ]
)
"""A record on its way between workers, before anything is judged absent. Regions are those of a source of regions."""


def records_to_table(records: Sequence[Record]) -> Any:
    """Records without absent phrases -> table of `RECORD_SCHEMA`, one row each, in order."""
    return pa.Table.from_pylist([_pack(record) for record in records], schema=RECORD_SCHEMA)


def table_to_records(table: Any) -> list[Record]:
    """Inverse of `records_to_table`. Raises SchemaError if columns are missing."""
    missing = [name for name in RECORD_SCHEMA.names if name not in table.column_names]
    if missing:
        raise SchemaError(f"a batch between stages lacks the columns {missing}")
    return [_unpack(row) for row in table.select(RECORD_SCHEMA.names).to_pylist()]


def _pack(record: Record) -> dict[str, Any]:
    sample = record.sample
    return {
        "id": sample.id,
        "sample_id": sample.sample_id,
        "source": sample.source,
        "captions": sample.captions,
        "image": _fields(sample.image),
        "width_px": record.width_px,
        "height_px": record.height_px,
        "phrases": [_fields(phrase) for phrase in record.phrases],
        "dropped_phrases": record.dropped_phrases,
        "unimportant_phrases": record.unimportant_phrases,
        "pixels": None if record.pixels is None else _packed(record.pixels.rgb),
        "heat_maps": [{**_fields(heat_map), "values": _packed(heat_map.values)} for heat_map in record.heat_maps],
        "regions": [{**_fields(region), "mask": _fields(region.mask)} for region in record.regions],
        "notes": record.notes,
        "error": None if record.error is None else _fields(record.error),
    }


def _unpack(row: Mapping[str, Any]) -> Record:
    return Record(
        sample=Sample(
            sample_id=row["sample_id"],
            source=row["source"],
            captions=tuple(row["captions"]),
            image=ImageRef(**row["image"]),
        ),
        width_px=row["width_px"],
        height_px=row["height_px"],
        phrases=tuple(Phrase(**phrase) for phrase in row["phrases"]),
        dropped_phrases=row["dropped_phrases"],
        unimportant_phrases=row["unimportant_phrases"],
        pixels=None if row["pixels"] is None else Pixels(rgb=_unpacked(row["pixels"], np.uint8)),
        heat_maps=tuple(
            HeatMap(**{**entry, "values": _unpacked(entry["values"], np.float32)}) for entry in row["heat_maps"]
        ),
        regions=tuple(_region(entry) for entry in row["regions"]),
        notes=tuple(row["notes"]),
        error=None if row["error"] is None else RowError(**row["error"]),
    )


def _region(entry: Mapping[str, Any]) -> Region:
    mask = Rle(size_hw=tuple(entry["mask"]["size_hw"]), counts=entry["mask"]["counts"])
    return Region(**{**entry, "box_xywh_px": tuple(entry["box_xywh_px"]), "mask": mask})


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a record by name; `dataclasses.asdict` would copy what is in them."""
    return {name: getattr(value, name) for name in value.__slots__}


def _packed(values: NDArray[Any]) -> dict[str, Any]:
    return {"shape": values.shape, "data": values.tobytes()}


def _unpacked(packed: Mapping[str, Any], kind: Any) -> NDArray[Any]:
    return np.frombuffer(packed["data"], kind).reshape(packed["shape"])


def records_to_rows(records: Iterable[Record], *, embed_images: bool, heat_maps: bool = False) -> Any:
    """Finished records -> table of `dataset_schema`, one row each, in order."""
    rows = [_row(record, embed_images=embed_images, heat_maps=heat_maps) for record in records]
    return pa.Table.from_pylist(rows, schema=dataset_schema(embed_images=embed_images, heat_maps=heat_maps))


def _row(record: Record, *, embed_images: bool, heat_maps: bool) -> dict[str, Any]:
    sample = record.sample
    image_id = sample.id
    row: dict[str, Any] = {
        "id": image_id,
        "sample_id": sample.sample_id,
        "file_name": sample.image.file_name,
        "width": record.width_px,
        "height": record.height_px,
        "captions": sample.captions,
        "annotations": [_annotation(record, image_id, region, n) for n, region in enumerate(record.regions)],
        "absent": [_absent(record, entry) for entry in record.absent],
        "phrase_count": len(record.phrases),
        "warnings": _warnings(record),
        "error": None if record.error is None else record.error.reason,
        "error_detail": None if record.error is None else record.error.detail,
    }
    if heat_maps:
        row["phrases"] = [_stored_phrase(phrase) for phrase in record.phrases]
        levels = levels_of([heat_map.values for heat_map in record.heat_maps])
        row["heat_maps"] = [
            _stored_heat_map(heat_map, own) for heat_map, own in zip(record.heat_maps, levels, strict=True)
        ]
    if embed_images:
        # Without bytes the whole struct is null: readers would try to open a path that is only a name. So it is in
        # a row with an error, whose bytes nobody may have decoded yet.
        has_image = sample.image.content is not None and record.error is None
        row["image"] = {"bytes": sample.image.content, "path": sample.image.file_name} if has_image else None
    return row


def _stored_phrase(phrase: Phrase) -> dict[str, Any]:
    return {
        "phrase": phrase.text,
        "head": phrase.head,
        "caption_index": phrase.caption_index,
        "span": (phrase.start, phrase.end),
        "plural": phrase.plural,
        "importance": phrase.importance,
    }


def _stored_heat_map(heat_map: HeatMap, levels: NDArray[np.uint8] | None) -> dict[str, Any]:
    return {
        "phrase": heat_map.text,
        "size": heat_map.values.shape,
        "levels": None if levels is None or heat_map.fault else levels.tobytes(),
        "shift_cells": heat_map.shift_cells,
        "similarity": heat_map.similarity,
        "presence": heat_map.presence,
    }


def mapped_record(row: Mapping[str, Any]) -> Record:
    """The record of a row that has phrases and heat maps, as it was before its regions were cut.

    The maps are in levels, so that the same regions and surfaces come of them; one without heat is all zeros.

    Args:
        row: Has `HEAT_MAP_FIELDS`, `sample_id`, `file_name`, `width`, `height`, `captions`, `error` and
            `error_detail`.

    Raises:
        SchemaError: A map does not fill its grid.
    """
    error = None if row["error"] is None else RowError(reason=row["error"], detail=row["error_detail"] or "")
    return Record(
        sample=Sample(
            sample_id=row["sample_id"],
            source=row["sample_id"],
            captions=tuple(row["captions"]),
            image=ImageRef(file_name=row["file_name"]),
        ),
        width_px=row["width"],
        height_px=row["height"],
        phrases=tuple(
            Phrase(
                text=stored["phrase"],
                head=stored["head"],
                caption_index=stored["caption_index"],
                start=stored["span"][0],
                end=stored["span"][1],
                plural=stored["plural"],
                importance=stored["importance"],
            )
            for stored in row["phrases"]
        ),
        heat_maps=tuple(_heat_map(stored, row["sample_id"]) for stored in row["heat_maps"]),
        error=error,
    )


def _heat_map(stored: Mapping[str, Any], sample_id: str) -> HeatMap:
    h, w = stored["size"]
    levels = None if stored["levels"] is None else np.frombuffer(stored["levels"], np.uint8)
    if min(h, w) < 1 or (levels is not None and levels.size != h * w):
        cells = "no" if levels is None else levels.size
        raise SchemaError(f"{sample_id}: the heat map of {stored['phrase']!r} has {cells} levels for {h} x {w} cells")
    values = np.zeros((h, w), np.float32) if levels is None else levels.reshape(h, w).astype(np.float32)
    return HeatMap(
        text=stored["phrase"],
        values=values,
        similarity=stored["similarity"],
        shift_cells=stored["shift_cells"],
        # As it was before it was stored: scores are made of it.
        presence=None if stored["presence"] is None else round(stored["presence"], 6),
    )


def _annotation(record: Record, image_id: int, region: Region, number: int) -> dict[str, Any]:
    phrase = record.phrases[region.phrase_index]
    return {
        "id": stable_id(f"{record.sample.sample_id}\n{number}"),
        "image_id": image_id,
        "category_id": stable_id(phrase.text),
        "bbox": region.box_xywh_px,
        "area": region.area_px,
        "segmentation": {"size": region.mask.size_hw, "counts": region.mask.counts},
        "iscrowd": 0,
        "phrase": phrase.text,
        "head": phrase.head,
        "caption_index": phrase.caption_index,
        "span": (phrase.start, phrase.end),
        "score": region.score,
        "similarity": region.similarity,
        "presence": region.presence,
        "group": region.group,
        "importance": phrase.importance,
    }


def _absent(record: Record, entry: Absent) -> dict[str, Any]:
    phrase = record.phrases[entry.phrase_index]
    return {
        "phrase": phrase.text,
        "head": phrase.head,
        "caption_index": phrase.caption_index,
        "span": (phrase.start, phrase.end),
        "presence": entry.presence,
        "similarity": entry.similarity,
        "importance": phrase.importance,
    }


_FAULTS = {
    "": "no part of its heat map passed the cleaning",
    "constant": "the similarity of all patches is the same",
    "empty": "its heat map is zero everywhere",
    "non_finite": "its heat map is not finite",
    "no_map": "the source of regions has no box of that name",
}


def _warnings(record: Record) -> list[str]:
    """What a reader of the row would otherwise wonder about."""
    if record.error is not None:
        return []
    told = {record.phrases[region.phrase_index].text for region in record.regions}
    told.update(record.phrases[absent.phrase_index].text for absent in record.absent)
    faults = {heat_map.text: heat_map.fault for heat_map in record.heat_maps}
    missing = [text for text in dict.fromkeys(phrase.text for phrase in record.phrases) if text not in told]
    # Heat maps are for all phrases or, with another source of regions, for none.
    other = "" if faults else "no_map"
    warnings = [*record.notes, *(f"no region for {text!r}: {_FAULTS[faults.get(text, other)]}" for text in missing)]
    if record.dropped_phrases:
        warnings.append(f"{record.dropped_phrases} phrases over the limit per image were dropped")
    if record.unimportant_phrases:
        warnings.append(f"{record.unimportant_phrases} phrases below phrases.min_importance were dropped")
    return warnings
