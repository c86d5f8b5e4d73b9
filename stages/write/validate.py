"""Checking a finished dataset against its contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import RowError
from stages.masks import rle_area_px, rle_box_xywh_px
from stages.phrases.filters import normalise
from stages.records import Rle, stable_id
from stages.schema import DATASET_SCHEMA, IMAGE_FIELD, SCHEMA_VERSION


def validate(dataset: Path) -> Iterator[str]:
    """What is wrong with a dataset, one line a problem, with file and row; nothing if all is well.

    Checked: the manifest and its counts, the schema, unique ids, spans, boxes, areas, masks, errors and
    categories.
    """
    manifest_path = dataset / "dataset.json"
    if not manifest_path.is_file():
        yield f"{manifest_path}: missing; the run did not finish, run the same command again"
        manifest = {}
    else:
        try:
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            yield f"{manifest_path}: not JSON: {error}"
            manifest = {}
    if manifest and manifest.get("schema_version") != SCHEMA_VERSION:
        yield f"{manifest_path}: schema version {manifest.get('schema_version')}, this phrasebox reads {SCHEMA_VERSION}"
    files = sorted((dataset / "data").glob("*.parquet"))
    if not files:
        yield f"{dataset / 'data'}: no Parquet files"
    image_ids: list[Any] = []
    annotation_ids: list[Any] = []
    categories: dict[str, int] = {}
    counts = {"written": 0, "failed": 0, "without_phrases": 0, "regions": 0, "phrases": 0}
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                yield from (f"{path}: {problem}" for problem in _schema_problems(file.schema_arrow))
                first = 0
                for batch in file.iter_batches(batch_size=512):
                    rows = batch.to_pylist()
                    image_ids.append(np.array([row["id"] for row in rows], np.int64))
                    annotation_ids.append(np.array([a["id"] for row in rows for a in row["annotations"]], np.int64))
                    for number, row in enumerate(rows, first):
                        yield from (f"{path}: row {number} ({row['sample_id']}): {p}" for p in _row_problems(row))
                        counts["written"] += 1
                        counts["failed"] += row["error"] is not None
                        counts["without_phrases"] += row["error"] is None and row["phrase_count"] == 0
                        counts["regions"] += len(row["annotations"])
                        counts["phrases"] += row["phrase_count"]
                        for annotation in row["annotations"]:
                            categories[annotation["phrase"]] = categories.get(annotation["phrase"], 0) + 1
                    first += len(rows)
        except (pa.ArrowInvalid, pa.ArrowIOError, OSError, KeyError) as error:
            yield f"{path}: damaged or not a phrasebox shard: {error}"
    yield from _duplicates("image id", image_ids)
    yield from _duplicates("annotation id", annotation_ids)
    yield from _manifest_problems(manifest_path, manifest.get("counts", {}), counts)
    yield from _category_problems(dataset / "categories.parquet", categories)


def _schema_problems(schema: Any) -> Iterator[str]:
    for expected in DATASET_SCHEMA:
        position = schema.get_field_index(expected.name)
        if position < 0:
            yield f"no column {expected.name}"
        elif schema.field(position).type != expected.type:
            yield f"column {expected.name}: expected {expected.type}, got {schema.field(position).type}"
    for name in schema.names:
        if name not in DATASET_SCHEMA.names and name != IMAGE_FIELD.name:
            yield f"unknown column {name}"


def _row_problems(row: dict[str, Any]) -> Iterator[str]:
    if row["id"] != stable_id(row["sample_id"]):
        yield f"id {row['id']} is not the hash of its sample_id"
    if row["error"] is not None:
        try:
            RowError.parse(row["error"])
        except ValueError as error:
            yield f"error: {error}"
        if row["annotations"]:
            yield "has an error and annotations"
    for annotation in row["annotations"]:
        yield from (f"annotation {annotation['id']}: {problem}" for problem in _annotation_problems(annotation, row))


def _annotation_problems(annotation: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    if annotation["image_id"] != row["id"]:
        yield f"image_id {annotation['image_id']} is not the row's id"
    if annotation["category_id"] != stable_id(annotation["phrase"]):
        yield "category_id is not the hash of its phrase"
    if not 0 < annotation["id"] < 2**53:
        yield "id outside 1 .. 2^53 - 1"
    if annotation["iscrowd"] != 0:
        yield f"iscrowd is {annotation['iscrowd']}"
    for name, low, high in (("score", 0.0, 1.0), ("similarity", -1.001, 1.001)):
        if not low <= annotation[name] <= high:
            yield f"{name} {annotation[name]} outside {low:g} .. {high:g}"
    x, y, w, h = annotation["bbox"]
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= row["width"] and y + h <= row["height"]):
        yield f"box {[x, y, w, h]} is empty or leaves the {row['width']}x{row['height']} image"
    size = annotation["segmentation"]["size"]
    if list(size) != [row["height"], row["width"]]:
        yield f"mask size {size} is not [height, width]"
        return
    rle = Rle(size_hw=(size[0], size[1]), counts=annotation["segmentation"]["counts"])
    try:
        area, box = rle_area_px(rle), rle_box_xywh_px(rle)
    except (ValueError, UnicodeEncodeError) as error:
        yield f"mask cannot be decoded: {error}"
        return
    if np.float32(area) != np.float32(annotation["area"]):
        yield f"area {annotation['area']:g} but the mask has {area} pixels"
    if not np.array_equal(np.array(box, np.float32), np.array(annotation["bbox"], np.float32)):
        yield f"box {annotation['bbox']} but the mask's box is {list(box)}"
    yield from _span_problems(annotation, row)


def _span_problems(annotation: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    start, end = annotation["span"]
    index = annotation["caption_index"]
    if not 0 <= index < len(row["captions"]):
        yield f"caption_index {index} but there are {len(row['captions'])} captions"
        return
    words = row["captions"][index][start:end]
    if not (0 <= start < end <= len(row["captions"][index])):
        yield f"span [{start}, {end}) leaves the caption"
    elif normalise(words) != annotation["phrase"]:
        yield f"span says {words!r} but the phrase is {annotation['phrase']!r}"


def _duplicates(what: str, parts: list[Any]) -> Iterator[str]:
    if not parts:
        return
    ids, times = np.unique(np.concatenate(parts), return_counts=True)
    for value, count in zip(ids[times > 1][:20].tolist(), times[times > 1][:20].tolist(), strict=True):
        yield f"{what} {value} occurs {count} times"


def _manifest_problems(path: Path, told: dict[str, Any], counted: dict[str, int]) -> Iterator[str]:
    for name, count in counted.items():
        if name in told and told[name] != count:
            yield f"{path}: counts.{name} is {told[name]} but the shards hold {count}"
    if told and told["read"] != counted["written"]:
        yield f"{path}: {told['read']} samples were read but {counted['written']} rows written"


def _category_problems(path: Path, counted: dict[str, int]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing"
        return
    table = pq.read_table(path).to_pylist()
    told = {row["name"]: row["count"] for row in table}
    if told != counted:
        different = sorted(set(told.items()) ^ set(counted.items()))[:3]
        yield f"{path}: does not agree with the shards, for example on {different}"
    yield from (f"{path}: id of {row['name']!r} is wrong" for row in table if row["id"] != stable_id(row["name"]))
