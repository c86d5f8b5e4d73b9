"""Checks of a finished dataset against its contract."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from stages.contract.errors import DATASET_EXPECTED, ROW_ERRORS, InputError, one_line
from stages.contract.masks import decode_runs, rle_box_xywh_px
from stages.contract.records import Rle, stable_id
from stages.contract.schema import (
    ABSENT,
    ANNOTATION,
    DATASET_SCHEMA,
    HEAT_MAP_FIELDS,
    IMAGE_FIELD,
    OPTIONAL_FIELDS,
    STORED_HEAT_MAP,
    STORED_PHRASE,
    is_said,
)
from stages.contract.versions import (
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    field_of,
    other_version,
    read_batches,
    schema_of,
)
from stages.phrases.filters import normalise
from stages.shared.storage import AnyPath, found_in, parquet_file
from stages.write.tally import CATEGORIES_SCHEMA, Tally, category_rows

_MOST_EXAMPLES: Final = 20
"""Ids that are named of those that occur more than once."""

_ERROR_COLUMNS: Final = ("error", "error_detail")

_MAY_BE_NULL: Final = ("presence", "group", "importance", "levels")
"""Fields that are null where nothing is known."""

_RANGES: Final = {
    "score": (0.0, 1.0),
    "presence": (0.0, 1.0),
    "importance": (0.0, 1.0),
    "similarity": (-1.001, 1.001),
}
"""The lowest and the highest value of a number."""

_COUNTS_ABSENT: Final = 3
"""The schema version whose manifests are the first to count absent phrases."""


def validate(dataset: AnyPath) -> Iterator[str]:
    """Find what is wrong with a dataset.

    The manifest and its counts are checked, the schema, unique ids, spans, boxes, areas, masks, errors, embedded
    images and categories. Where a shard cannot be read, that is the problem, and counts are not compared.

    Yields:
        One line for each problem, with file and row; nothing if all is well.

    Raises:
        InputError: No run has written in this place.
    """
    files = _shards_of(dataset)
    manifest_path = dataset / "dataset.json"
    manifest = yield from _read_manifest(manifest_path)
    stored = (manifest or {}).get("counts")
    version = (manifest or {}).get("schema_version")
    version = version if version in READABLE_VERSIONS else SCHEMA_VERSION
    if not files and not (isinstance(stored, dict) and stored.get("read") == 0):
        yield f"{dataset / 'data'}: no Parquet files"
    total, all_read = Tally(), True
    image_ids: list[int] = []
    annotation_ids: list[int] = []
    for path in files:
        total.files += 1
        try:
            with parquet_file(path) as file:
                readable = yield from _schema_problems(path, file.schema_arrow, version)
                all_read &= readable
                for number, row in enumerate(_rows(file) if readable else ()):
                    yield from (f"{path}: row {number} ({row['sample_id']!r}): {p}" for p in _row_problems(row))
                    total.add(row)
                    image_ids.append(row["id"] or 0)
                    annotation_ids.extend(annotation["id"] or 0 for annotation in row["annotations"] or ())
        # UnicodeDecodeError: text whose bytes were changed
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            all_read = False
            yield f"{path}: damaged or not a phrasebox shard: {one_line(error)}"
    yield from _duplicates("image id", image_ids)
    yield from _duplicates("annotation id", annotation_ids)
    if all_read:
        if manifest is not None:
            yield from _count_problems(manifest_path, stored, total, version)
        yield from _category_problems(dataset / "categories.parquet", total)


def _shards_of(dataset: AnyPath) -> list[AnyPath]:
    try:
        if isinstance(dataset, Path) and not dataset.is_dir():
            is_file = dataset.exists()
            raise InputError(f"{dataset} is a file: {DATASET_EXPECTED}" if is_file else f"no such folder: {dataset}")
        files = found_in(dataset / "data", "*.parquet")
        marks = (dataset / "dataset.json", dataset / ".phrasebox" / "run.json")
        if not files and not any(mark.exists() for mark in marks):
            raise InputError(f"{dataset} is not a dataset: no dataset.json in it; {DATASET_EXPECTED}")
    except OSError as error:
        raise InputError(f"cannot read {dataset}: {error.strerror or one_line(error)}") from error
    return files


def _read_manifest(path: AnyPath) -> Generator[str, None, dict[str, Any] | None]:
    """Yield what is wrong with the manifest; return it, or None if it cannot be read."""
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield f"{path}: missing; the run did not finish, run the same command again"
        return None
    except (OSError, ValueError) as error:
        yield f"{path}: not JSON: {error}"
        return None
    if not isinstance(manifest, dict):
        yield f"{path}: expected an object, got {type(manifest).__name__}"
        return None
    if manifest.get("schema_version") not in READABLE_VERSIONS:
        yield f"{path}: {other_version(manifest.get('schema_version'))}"
    return manifest


def _schema_problems(path: AnyPath, schema: Any, version: int) -> Generator[str, None, bool]:
    """Yield what is wrong with a shard's columns; return whether its rows can be checked.

    Args:
        path: The shard.
        schema: Its schema.
        version: One of `READABLE_VERSIONS`, which says what columns there are.
    """
    readable = True
    for expected in (*schema_of(version), *(field_of(entry, version) for entry in _optional(schema.names))):
        position = schema.get_field_index(expected.name)
        if position < 0:
            yield f"{path}: no column {expected.name}"
            readable = False
        elif schema.field(position).type != expected.type:
            yield f"{path}: column {expected.name}: expected {expected.type}, got {schema.field(position).type}"
            readable = False
    for name in schema.names:
        if name not in DATASET_SCHEMA.names and name not in {entry.name for entry in OPTIONAL_FIELDS}:
            yield f"{path}: unknown column {name}"
    return readable


def _optional(names: Collection[str]) -> list[Any]:
    """The optional columns that a shard has or ought to have: phrases and heat maps come together."""
    found = [entry for entry in OPTIONAL_FIELDS if entry.name in names]
    maps = HEAT_MAP_FIELDS if any(entry in HEAT_MAP_FIELDS for entry in found) else ()
    return [*maps, *(entry for entry in found if entry not in HEAT_MAP_FIELDS)]


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    names = dict.fromkeys((*file.schema_arrow.names, *DATASET_SCHEMA.names))
    for table in read_batches(file, list(names), batch_size=512):
        yield from table.to_pylist()


def _row_problems(row: dict[str, Any]) -> Iterator[str]:
    nulls = [name for name in DATASET_SCHEMA.names if name not in _ERROR_COLUMNS and row[name] is None]
    if nulls or None in row["captions"]:
        yield f"{' and '.join(nulls)} is null" if nulls else "a caption is null"
        return
    if row["id"] != stable_id(row["sample_id"]):
        yield f"id {row['id']} is not the hash of its sample_id"
    if row["error"] is not None:
        if row["error"] not in ROW_ERRORS:
            yield f"error: expected a reason from {sorted(ROW_ERRORS)}, got {row['error']!r}"
        if row["error_detail"] is None:
            yield "has an error without a detail"
        if row["annotations"] or row["absent"]:
            yield f"has an error and {'annotations' if row['annotations'] else 'absent phrases'}"
    else:
        if row["error_detail"] is not None:
            yield "has the detail of an error but no error"
        if not (row["width"] > 0 and row["height"] > 0):
            yield f"no error but a size of {row['width']}x{row['height']}"
        if IMAGE_FIELD.name in row and (row[IMAGE_FIELD.name] or {}).get("bytes") is None:
            yield "no error and no image"
    if row["annotations"] and not row["phrase_count"]:
        yield f"{len(row['annotations'])} annotations but no phrases"
    yield from _heat_map_problems(row)
    yield from _absent_problems(row)
    for annotation in row["annotations"]:
        yield from (f"annotation {annotation['id']}: {problem}" for problem in _annotation_problems(annotation, row))


def _annotation_problems(annotation: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    nulls = [field.name for field in ANNOTATION if annotation[field.name] is None and field.name not in _MAY_BE_NULL]
    if nulls:
        yield f"{' and '.join(nulls)} is null"
        return
    if annotation["image_id"] != row["id"]:
        yield f"image_id {annotation['image_id']} is not the row's id"
    if annotation["category_id"] != stable_id(annotation["phrase"]):
        yield "category_id is not the hash of its phrase"
    if not 0 < annotation["id"] < 2**53:
        yield "id outside 1 .. 2^53 - 1"
    if annotation["iscrowd"] != 0:
        yield f"iscrowd is {annotation['iscrowd']}"
    if annotation["group"] is not None and annotation["group"] < 0:
        yield f"group {annotation['group']} is negative"
    yield from _range_problems(annotation, ("score", "presence", "importance", "similarity"))
    yield from _place_problems(annotation, row)
    yield from _span_problems(annotation, row)


def _absent_problems(row: dict[str, Any]) -> Iterator[str]:
    """Problems of the phrases judged not to be in the image."""
    placed = {(each["phrase"], each["caption_index"], *(each["span"] or ())) for each in row["annotations"]}
    for number, entry in enumerate(row["absent"]):
        nulls = [field.name for field in ABSENT if entry[field.name] is None and field.name != "importance"]
        if nulls:
            yield f"absent phrase {number}: {' and '.join(nulls)} is null"
            continue
        problems = [*_range_problems(entry, ("presence", "importance", "similarity")), *_span_problems(entry, row)]
        yield from (f"absent phrase {entry['phrase']!r}: {problem}" for problem in problems)
        if (entry["phrase"], entry["caption_index"], *entry["span"]) in placed:
            yield f"absent phrase {entry['phrase']!r}: it has an annotation"


def _range_problems(entry: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        low, high = _RANGES[name]
        if entry[name] is not None and not low <= entry[name] <= high:
            yield f"{name} {entry[name]} outside {low:g} .. {high:g}"


def _heat_map_problems(row: dict[str, Any]) -> Iterator[str]:
    """Problems of the stored phrases and heat maps, if there are any."""
    if HEAT_MAP_FIELDS[0].name not in row:
        return
    phrases, maps = row["phrases"], row["heat_maps"]
    if phrases is None or maps is None:
        yield "phrases or heat_maps is null"
        return
    for what, kind, entries in (("phrase", STORED_PHRASE, phrases), ("heat map", STORED_HEAT_MAP, maps)):
        for number, entry in enumerate(entries):
            nulls = [field.name for field in kind if field.name not in _MAY_BE_NULL and entry[field.name] is None]
            if nulls:
                yield f"{what} {number}: {' and '.join(nulls)} is null"
                return
    if len(phrases) != row["phrase_count"]:
        yield f"phrase_count is {row['phrase_count']} but there are {len(phrases)} phrases"
    for phrase in phrases:
        problems = [*_range_problems(phrase, ("importance",)), *_span_problems(phrase, row)]
        yield from (f"phrase {phrase['phrase']!r}: {problem}" for problem in problems)
    named, mapped = [phrase["phrase"] for phrase in phrases], [stored["phrase"] for stored in maps]
    if row["error"] is None and mapped != list(dict.fromkeys(named)):
        yield f"the heat maps are of {mapped}, not of the phrases"
    for stored in maps:
        cells = None if stored["levels"] is None else len(stored["levels"])
        if len(stored["size"]) != 2 or None in stored["size"] or cells not in (None, int(np.prod(stored["size"]))):
            yield f"heat map of {stored['phrase']!r}: {cells} levels on a grid of {stored['size']}"


def _place_problems(annotation: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    """Problems of box, mask and area."""
    if len(annotation["bbox"]) != 4 or None in annotation["bbox"]:
        yield f"bbox {annotation['bbox']} has not four numbers"
        return
    x, y, w, h = annotation["bbox"]
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= row["width"] and y + h <= row["height"]):
        yield f"box {[x, y, w, h]} is empty or leaves the {row['width']}x{row['height']} image"
    coded = annotation["segmentation"]
    if coded["size"] != [row["height"], row["width"]]:
        yield f"mask size {coded['size']} is not [height, width]"
        return
    rle = Rle(size_hw=(row["height"], row["width"]), counts=coded["counts"] or "")
    try:
        area = int(decode_runs(rle)[1::2].sum())
    except ValueError as error:
        yield f"mask cannot be decoded: {error}"
        return
    box = rle_box_xywh_px(rle)
    if area != annotation["area"]:
        yield f"area {annotation['area']} but the mask has {area} pixels"
    if not np.array_equal(np.array(box, np.float32), np.array(annotation["bbox"], np.float32)):
        yield f"box {annotation['bbox']} but the mask's box is {list(box)}"


def _span_problems(annotation: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    if len(annotation["span"]) != 2 or None in annotation["span"]:
        yield f"span {annotation['span']} has not two numbers"
        return
    start, end = annotation["span"]
    index = annotation["caption_index"]
    if not 0 <= index < len(row["captions"]):
        yield f"caption_index {index} but there are {len(row['captions'])} captions"
        return
    if not is_said(annotation):
        return  # of a pool of concepts
    words = row["captions"][index][start:end]
    if not (0 <= start < end <= len(row["captions"][index])):
        yield f"span [{start}, {end}) leaves the caption"
    elif normalise(words) != annotation["phrase"]:
        yield f"span says {words!r} but the phrase is {annotation['phrase']!r}"


def _duplicates(what: str, ids: list[int]) -> Iterator[str]:
    values, times = np.unique(np.array(ids, np.int64), return_counts=True)
    twice = times > 1
    for value, count in list(zip(values[twice].tolist(), times[twice].tolist(), strict=True))[:_MOST_EXAMPLES]:
        yield f"{what} {value} occurs {count} times"


def _count_problems(path: AnyPath, stored: Any, total: Tally, version: int) -> Iterator[str]:
    if not isinstance(stored, dict):
        yield f"{path}: counts are missing"
        return
    for name, count in {"read": total.rows, **total.counts()}.items():
        if name not in stored:
            if name != "absent" or version >= _COUNTS_ABSENT:
                yield f"{path}: counts.{name} is missing"
        elif stored[name] != count:
            yield f"{path}: counts.{name} is {stored[name]} but the shards hold {count}"


def _category_problems(path: AnyPath, total: Tally) -> Iterator[str]:
    try:
        with parquet_file(path) as file:
            table = file.read()
    except FileNotFoundError:
        yield f"{path}: missing"
        return
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: damaged: {one_line(error)}"
        return
    if not table.schema.equals(CATEGORIES_SCHEMA):
        yield f"{path}: expected the columns {_columns(CATEGORIES_SCHEMA)}, got {_columns(table.schema)}"
        return
    stored = [tuple(row.values()) for row in table.to_pylist()]
    names = Counter(name for _, name, _, _ in stored)
    yield from (f"{path}: {name!r} occurs twice" for name, count in names.items() if count > 1)
    yield from (f"{path}: id of {name!r} is wrong" for number, name, _, _ in stored if number != stable_id(name or ""))
    different = {row[1:] for row in stored} ^ {row[1:] for row in category_rows(total)}
    if different:
        yield f"{path}: does not agree with the shards, for example on {sorted(different, key=str)[:3]}"


def _columns(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
