"""The kind of an input, told from its path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from stages.contract.errors import InputError, RowFault
from stages.read.base import Reader
from stages.read.find import find_files
from stages.read.streams import open_plain
from stages.storage import absolute, filesystem_of, path_in

_EXPECTED: Final = (
    "expected .jsonl or .ndjson, .csv or .tsv, .parquet, .tar (webdataset) or .json (COCO captions), a glob or a "
    "folder of these, or a folder of images each with a .txt beside it"
)

_PEEK_BYTES: Final = 1024 * 1024

_TABLES: Final = ("parquet", "jsonl", "csv")


def kind_of(entry: str, readers: Mapping[str, type[Reader]]) -> str:
    """The kind of one entry of `input.path`. See `stages.read.guess_kind`."""
    location = absolute(entry)
    filesystem = filesystem_of(location)
    if filesystem.isdir(path_in(filesystem, location)):
        return _kind_of_folder(entry, readers)
    kind = next((kind for kind, reader in readers.items() if location.lower().endswith(reader.suffixes)), "")
    if kind == "folder":
        raise InputError(f"{entry} is an image: {_EXPECTED}")
    if kind == "coco_captions" and filesystem.isfile(path_in(filesystem, location)):
        return _kind_of_json(location)
    if not kind:
        find_files(entry, ())  # says so if there is no such file
        raise InputError(f"cannot tell what kind of input {entry} is: {_EXPECTED}; or set input.kind")
    return kind


def _kind_of_folder(entry: str, readers: Mapping[str, type[Reader]]) -> str:
    every = tuple(suffix for reader in readers.values() for suffix in reader.suffixes)
    names = [file.name.lower() for file in find_files(entry, every)]
    found = [kind for kind, reader in readers.items() if any(name.endswith(reader.suffixes) for name in names)]
    tables = [kind for kind in found if kind in _TABLES]
    if found[0] in _TABLES and len(tables) > 1:
        raise InputError(
            f"{entry} holds files of several kinds, {' and '.join(tables)}: give the files of one, or set input.kind"
        )
    return found[0]


def _kind_of_json(location: str) -> str:
    """COCO captions, or JSON Lines under another name."""
    try:
        with open_plain(location) as stream:
            lines = stream.read(_PEEK_BYTES).strip().split(b"\n", 1)
        first = json.loads(lines[0])
    except RowFault as fault:
        raise InputError(f"cannot read {location}: {fault.error.detail}") from fault
    except (ValueError, RecursionError):
        return "coco_captions"  # one object over several lines, or no JSON: its reader says so
    is_row = isinstance(first, dict) and len(lines) > 1 and "images" not in first
    return "jsonl" if is_row else "coco_captions"
