"""JSON Lines: one object with an image path and captions in each line; or a JSON list of such objects.

    {"image": "kitchen/1.jpg", "caption": "a red cup on a table", "id": "k1"}
    {"image": "kitchen/2.jpg", "captions": ["two cats", "cats asleep on a sofa"]}

TAO's `image_path`, Hugging Face imagefolder's `file_name` + `text` and Rex-Omni's rows are read without any setting.
Blank lines are not rows. Planning reads each file once, to find where shards begin, and repeated ids.

In a `.json` file that is one list, rows count from 1 as lines do. Such a file cannot be read in parts: planning loads
it whole, which takes about 6 times its size in memory, and each shard carries its rows, compressed.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Final, Literal

from stages.contract.errors import InputError, RowFault, one_line
from stages.contract.records import Sample
from stages.read.base import COMPRESSION_SUFFIXES, Reader, Shard, SkippedRow
from stages.read.find import find_files
from stages.read.plan import LinesConfig, Row, carried_rows, pack_rows, plan_lines, samples
from stages.read.rows import RowParser, json_object, shorten
from stages.read.streams import PEEK_BYTES, begins_list, iter_lines, open_plain

_PROBE_ROWS: Final = 100
_MIN_PROBE_ROWS: Final = 10


class JsonlInput(LinesConfig):
    """Keys of `input` for `kind: jsonl`."""

    kind: Literal["jsonl"] = "jsonl"


class JsonlReader(Reader):
    """Reads `kind: jsonl`. Rows without an id get "FILE:LINE"."""

    config_type: ClassVar = JsonlInput
    suffixes: ClassVar = tuple(f".{kind}{end}" for kind in ("jsonl", "ndjson") for end in COMPRESSION_SUFFIXES)

    def __init__(self, config: JsonlInput) -> None:
        self.config = config
        self.rows = RowParser.of(config)

    def shards(self) -> list[Shard]:
        """Plan the input. Reject a file of ten rows or more if none of its first rows has an image, or a caption."""
        files = find_files(self.config.path, self.suffixes)
        self.rows.check_image_root()
        lists = {file.url: _list_in(file.url) for file in files if _is_list(file.url)}
        payloads = {url: pack_rows(rows) for url, rows in lists.items()}
        whole_files = {
            file.url: Shard(url=file.url, name=file.name, first_row=1, payload=payloads.get(file.url, b""))
            for file in files
        }
        for shard in whole_files.values():
            self._probe(shard)
        shards = plan_lines(files, lambda file: self._rows(whole_files[file.url]), self.config)
        for number, shard in enumerate(shards):
            if shard.url in lists:
                shards[number] = replace(shard, payload=pack_rows(lists[shard.url][shard.start : shard.stop]))
        return shards

    def read(self, shard: Shard) -> Iterator[Sample | SkippedRow]:
        """Yield the samples of a shard."""
        return samples(self._rows(shard), self.config, shard)

    def _rows(self, shard: Shard) -> Iterator[Row]:
        for number, position, fields in _fields(shard):
            yield Row.of(number, position, fields, shard, self.rows)

    def _probe(self, shard: Shard) -> None:
        """Raise InputError if none of a file's first rows has an image, or none has a caption."""
        names: dict[str, None] = {}
        count = 0
        for _, _, row in islice(_fields(shard), _PROBE_ROWS):
            if not isinstance(row, RowFault):
                count += 1
                names.update(dict.fromkeys(key for key, value in row.items() if value is not None))
        if count >= _MIN_PROBE_ROWS:
            expected = f"{shard.url}: none of the first {count} rows has the field"
            self.rows.check_columns(list(names), expected, all_configured=False)


def _fields(shard: Shard) -> Iterator[tuple[int, int, dict[str, Any] | RowFault]]:
    """Number and first byte of each line that is not blank, or element of a list, and its fields or its fault."""
    if shard.payload:
        for index, element in enumerate(carried_rows(shard)):
            fault = RowFault("bad_row", f"expected a JSON object, got {shorten(json.dumps(element))}")
            yield shard.first_row + index, shard.start + index, element if isinstance(element, dict) else fault
        return
    with open_plain(shard.url) as stream:
        for number, position, content in iter_lines(stream, shard.start, shard.stop, shard.first_row):
            at_start = position == 0
            if isinstance(content, RowFault):
                yield number, position, content
            elif (content.removeprefix(codecs.BOM_UTF8) if at_start else content).strip(b" \t\r"):
                try:
                    yield number, position, json_object(content, at_start=at_start)
                except RowFault as fault:
                    yield number, position, fault


def _is_list(url: str) -> bool:
    """Whether a JSON file is one list; files of other names hold lines."""
    if not url.lower().endswith((".json", ".json.gz")):
        return False
    with open_plain(url) as stream:
        return begins_list(stream.read(PEEK_BYTES))


def _list_in(url: str) -> list[Any]:
    """The elements of a file that is one list. Raise InputError if it is not JSON."""
    try:
        with open_plain(url) as stream:
            elements: list[Any] = json.loads(stream.read(-1).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{url} begins like a JSON list but is not one: {one_line(error)}") from error
    except RowFault as fault:
        raise InputError(f"cannot read {url}: {fault.error.detail}") from fault
    return elements
