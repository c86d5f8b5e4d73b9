"""Checks of a finished dataset against its contract."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa

from phrasebox.pipeline.dataset.folder import check_folder, tables_in
from phrasebox.pipeline.dataset.row_check import FIELDS, row_problems, schema_problems
from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.dataset.shard_list import listed_shards, store_damaged
from phrasebox.pipeline.dataset.stored_run import read_json
from phrasebox.pipeline.dataset.tally import Rows, empty_rows
from phrasebox.stages.contract.errors import DATASET_EXPECTED, ROW_ERRORS, InputError, SchemaError, one_line
from phrasebox.stages.contract.masks import decode_runs, rle_box_xywh_px
from phrasebox.stages.contract.records import is_id_of
from phrasebox.stages.contract.schema import ENTRIES, IMAGE_FIELD, is_said, rle_of
from phrasebox.stages.contract.schema_versions import VERSION, check_version, lift_manifest
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.lifted_shards import shard_file
from phrasebox.stages.files.shards import ShardFile, sha256_of
from phrasebox.stages.files.storage import AnyPath, found_in, parquet_file
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.write import Tally

_REPEATED: Final = "SELECT id, count(*) AS times FROM {} GROUP BY id HAVING times > 1 ORDER BY id LIMIT 20"
_REMEDY: Final = "run the same command again, and its rows are made anew"


def validate(dataset: AnyPath) -> Iterator[str]:
    """Yield a line, with file and row, for each problem of a dataset.

    Raise InputError if no run has written it.

    It checks the manifest, its counts and its list of shards, the content of each shard by its
    digest, the schema, unique ids, spans, boxes, areas, masks, errors, embedded images and
    categories. A shard that cannot be read is a problem; then counts are not compared. The names of
    damaged shards are left for the next run.
    """
    files = _shards_of(dataset)
    manifest_path = dataset / "dataset.json"
    manifest = yield from _read_manifest(manifest_path)
    if manifest is not None and VERSION in manifest:
        try:
            check_version(manifest_path, manifest)
        except SchemaError as error:
            yield str(error)
            return  # of its files this version knows nothing
        manifest = lift_manifest(manifest)
    counts = (manifest or {}).get("counts")
    listed, files = yield from _compare_list(manifest, manifest_path, files)
    damaged = set[str]()
    if not files and not (isinstance(counts, dict) and counts.get("read") == 0):
        yield f"{dataset / 'data'}: no Parquet files"
    are_all_readable = True
    with empty_rows() as rows:
        for shard, path in enumerate(files):
            try:
                if path.name in listed and sha256_of(path) != listed[path.name].sha256:
                    damaged.add(path.name)
                    yield f"{path}: damaged: its content is not what its run wrote; {_REMEDY}"
                with shard_file(path) as file:
                    is_readable = yield from _schema_problems(path, file.schema_arrow)
                    are_all_readable &= is_readable
                    for first, table in (
                        tables_in(file, file.schema_arrow.names, 512) if is_readable else ()
                    ):
                        yield from _problems_of_rows(path, first, table)
                        rows.add(shard, table)
            # UnicodeDecodeError: text whose bytes were changed
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                are_all_readable = False
                damaged.add(path.name)
                yield f"{path}: damaged or not a phrasebox shard: {one_line(error)}; {_REMEDY}"
        for kind, table in (("image", "samples"), ("annotation", "regions")):
            for number, times in rows.ask(_REPEATED.format(table)):
                yield f"{kind} id {number} occurs {times} times"
        if damaged:
            with suppress(OSError):  # somebody else's folder
                store_damaged(dataset, damaged)
        if are_all_readable:
            if manifest is not None:
                yield from _count_problems(manifest_path, counts, rows.tally(len(files)))
            yield from _category_problems(dataset / "categories.parquet", rows)


def _shards_of(dataset: AnyPath) -> list[AnyPath]:
    try:
        check_folder(dataset, dataset)
        files = found_in(dataset / "data", "*.parquet")
        run_files = (dataset / "dataset.json", dataset / ".phrasebox" / "run.json")
        if files or any(path.exists() for path in run_files):
            return files
    except OSError as error:
        raise InputError(f"cannot read {dataset}: {one_line(error)}") from error
    raise InputError(f"{dataset} is not a dataset: no dataset.json in it; {DATASET_EXPECTED}")


def _read_manifest(path: AnyPath) -> Generator[str, None, Json | None]:
    """Yield the problems of the manifest; return it, or None if it cannot be read."""
    manifest = None
    try:
        manifest = read_json(path)
        if manifest is None:
            yield f"{path}: missing; the run did not finish, run the same command again"
        elif VERSION not in manifest:
            yield f"{path}: {VERSION} is missing"
    except InputError as error:
        yield str(error)
    return manifest


def _compare_list(
    manifest: Json | None, path: AnyPath, files: list[AnyPath]
) -> Generator[str, None, tuple[Mapping[str, ShardFile], list[AnyPath]]]:
    """Yield the differences of the list of shards from the files in `data/`; return both by name, as far as they agree.

    Without a list, every file counts.
    """
    try:
        shards = None if manifest is None else listed_shards(manifest, path)
    except InputError as error:
        yield str(error)
        shards = None
    if shards is None:
        return {}, files
    listed = {shard.name: shard for shard in shards}
    names = {file.name for file in files}
    for name in sorted(listed.keys() - names):
        yield f"{path.parent / 'data' / name}: missing; {_REMEDY}"
    for name in sorted(names - listed.keys()):
        yield f"{path.parent / 'data' / name}: dataset.json does not list it, and nothing reads it; move it away"
    return listed, [file for file in files if file.name in listed]


def _schema_problems(path: AnyPath, schema: Any) -> Generator[str, None, bool]:
    """Yield the problems of a shard's columns; return whether its rows can be checked."""
    problems = list(schema_problems(schema))
    yield from (f"{path}: {problem}" for problem in problems)
    unknown = set(schema.names) - {field.name for field in FIELDS}
    yield from (f"{path}: unknown column {name}" for name in sorted(unknown))
    return not problems


def _problems_of_rows(path: AnyPath, first: int, table: Any) -> Iterator[str]:
    """Yield the problems of rows from number `first` on. One that breaks the contract has no others."""
    broken = row_problems(table)
    for number, row in enumerate(table.to_pylist()):
        problems = [broken[number]] if number in broken else _row_problems(row)
        yield from (f"{path}: row {first + number} ({row['sample_id']!r}): {p}" for p in problems)


def _row_problems(row: Row) -> Iterator[str]:
    if not is_id_of(row["id"], row["sample_id"]):
        yield f"id {row['id']} is not the hash of its sample_id"
    yield from _error_problems(row)
    if row["caption_language"] and len(row["caption_language"]) != len(row["captions"]):
        yield f"{len(row['caption_language'])} languages of {len(row['captions'])} captions"
        return
    if row["annotations"] and not row["phrase_count"]:
        yield f"{len(row['annotations'])} annotations but no phrases"
    names = [name for name in ENTRIES if name in row]
    problems = [
        f"{name}[{number}] ({entry['phrase']!r}): {problem}"
        for name in names
        for number, entry in enumerate(row[name])
        for problem in _entry_problems(name, entry, row)
    ]
    yield from problems
    if problems:
        return
    if {"phrases", "heat_maps"} <= row.keys():
        yield from _heat_map_problems(row)
    absent, annotated = (
        {(entry["phrase"], entry["caption_index"], *entry["span"]) for entry in row[name]}
        for name in ("absent", "annotations")
    )
    for phrase, *_ in sorted(absent & annotated):
        yield f"absent phrase {phrase!r}: it has an annotation"


def _error_problems(row: Row) -> Iterator[str]:
    """Problems of the error, and of the columns that only a row without an error fills."""
    if (row["error"] is None) is not (row["error_detail"] is None):
        yield f"error {row['error']!r}, but error_detail {row['error_detail']!r}"
    if row["error"] is not None:
        yield from _wrong(
            (
                row["error"] not in ROW_ERRORS,
                f"error: expected a reason from the closed list, got {row['error']!r}",
            ),
            (bool(row["annotations"] or row["absent"]), "has an error and annotations or absent phrases"),
        )
        return
    has_image = IMAGE_FIELD.name not in row or (row[IMAGE_FIELD.name] or {}).get("bytes") is not None
    if not has_image:
        yield "no error and no image"


def _wrong(*checks: tuple[bool, str]) -> Iterator[str]:
    return (problem for is_wrong, problem in checks if is_wrong)


def _entry_problems(name: str, entry: Json, row: Row) -> Iterator[str]:
    if "span" in entry:
        yield from _span_problems(entry, row)
    if name == "annotations":
        yield from _annotation_problems(entry, row)


def _annotation_problems(annotation: Annotation, row: Row) -> Iterator[str]:
    yield from _wrong(
        (
            not is_id_of(annotation["category_id"], annotation["phrase"]),
            "category_id is not the hash of its phrase",
        ),
        (annotation["iscrowd"] != 0, f"iscrowd is {annotation['iscrowd']}"),
    )
    rle = rle_of(annotation)
    area = int(decode_runs(rle)[1::2].sum())
    box = rle_box_xywh_px(rle)
    if area != annotation["area"] or not area:
        yield f"area {annotation['area']} but the mask has {area} pixels"
    match annotation["bbox_of"], annotation["bbox"]:
        case "mask", bbox if bbox != list(box):
            yield f"box {bbox} but the mask's box is {list(box)}"
        case "mask" | "learned" | "given", _:
            pass
        case other, _:
            yield f"bbox_of: expected mask, learned or given, got {other!r}"


def _heat_map_problems(row: Row) -> Iterator[str]:
    phrases = [entry["phrase"] for entry in row["phrases"]]
    mapped_phrases = [entry["phrase"] for entry in row["heat_maps"]]
    if len(phrases) != row["phrase_count"]:
        yield f"phrase_count is {row['phrase_count']} but there are {len(phrases)} phrases"
    if row["error"] is None and mapped_phrases != list(dict.fromkeys(phrases)):
        yield f"the heat maps are of {mapped_phrases}, not of the phrases"


def _span_problems(entry: Json, row: Row) -> Iterator[str]:
    if not is_said(entry):
        return
    start, end = entry["span"]
    index = entry["caption_index"]
    text = row["captions"][index][start:end]
    language = row["caption_language"][index] if row["caption_language"] else ENGLISH_CODE
    if normalise(text, language) != entry["phrase"]:
        yield f"span says {text!r} but the phrase is {entry['phrase']!r}"


def _count_problems(path: AnyPath, counts: Any, total: Tally) -> Iterator[str]:
    if not isinstance(counts, dict):
        yield f"{path}: counts are missing"
        return
    for name, count in {"read": total.rows, **total.counts()}.items():
        if counts.get(name) != count:
            difference = f"{counts[name]} but the shards hold {count}" if name in counts else "missing"
            yield f"{path}: counts.{name} is {difference}"


def _category_problems(path: AnyPath, rows: Rows) -> Iterator[str]:
    try:
        with parquet_file(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: {'missing' if isinstance(error, FileNotFoundError) else f'damaged: {one_line(error)}'}"
        return
    if not table.equals(pa.concat_tables(rows.categories())):
        yield f"{path}: does not agree with the shards"
