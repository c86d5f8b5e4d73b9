"""JSON Lines: one object with an image path and captions in each line.

    {"image": "kitchen/1.jpg", "caption": "a red cup on a table", "id": "k1"}
    {"image": "kitchen/2.jpg", "captions": ["two cats", "cats asleep on a sofa"]}

TAO's `image_path`, Hugging Face imagefolder's `file_name` + `text` and Rex-Omni's rows are read without any setting.
Blank lines are not rows. Planning reads each file once, to find where shards begin and which ids are given twice.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from stages.contract.errors import InputError, RowFault
from stages.contract.records import Sample
from stages.read.base import Reader, Shard, Skipped, SourceConfig
from stages.read.find import FoundFile, find_files
from stages.read.plan import Entry, plan_lines
from stages.read.rows import FieldsConfig, RowParser, bad_row, json_object, safe_place, shorten
from stages.read.streams import Line, iter_lines, open_plain

_PROBE_ROWS: Final = 100
_MIN_PROBE_ROWS: Final = 10


class JsonlInput(SourceConfig, FieldsConfig):
    """Keys of `input` for `kind: jsonl`."""

    kind: Literal["jsonl"] = "jsonl"

    shard_size: int = Field(default=1000, ge=1, le=1_000_000)
    """Samples that one worker reads at once; compressed files are not cut."""


class JsonlReader(Reader):
    """Reads `kind: jsonl`. Rows without an id get "FILE:LINE"."""

    config_type: ClassVar = JsonlInput
    suffixes: ClassVar = tuple(
        f".{kind}{packed}" for kind in ("jsonl", "ndjson") for packed in ("", ".gz", ".bz2", ".xz", ".zst")
    )

    def __init__(self, config: JsonlInput) -> None:
        self.config = config
        self.rows = RowParser.of(config)

    def shards(self) -> list[Shard]:
        """See `base.Reader`.

        A file of at least ten rows is refused if none of its first hundred has an image, or a caption.
        """
        files = find_files(self.config.path, self.suffixes)
        self.rows.check_image_root()
        for file in files:
            self._probe(file)
        return plan_lines(files, self._scan, self.config.shard_size)

    def read(self, shard: Shard) -> Iterator[Sample | Skipped]:
        """See `base.Reader`."""
        renamed = {item.index: item for item in shard.renamed}
        for index, (number, position, content) in enumerate(_lines(shard)):
            place = safe_place(shard.name, number)
            try:
                row = _object_in(content, at_start=position == 0)
            except RowFault as fault:
                yield bad_row(place, fault, renamed.get(index))
            else:
                yield self.rows.sample(row, place=place, shard=shard, renamed=renamed.get(index))

    def _scan(self, file: FoundFile) -> Iterator[Entry]:
        marks = [json.dumps(name).encode() for name in self.rows.fields.id_fields]
        for number, position, content in _lines(Shard(url=file.url, name=file.name, first_row=1)):
            place = sample_id = safe_place(file.name, number)
            # A line that holds neither the key nor an escape that may spell it gives no id, and is not parsed.
            if isinstance(content, bytes) and (b"\\u" in content or any(mark in content for mark in marks)):
                with suppress(RowFault):
                    sample_id = self.rows.id_of(_object_in(content, at_start=position == 0), place)
            yield Entry(position, number, sample_id, place)

    def _probe(self, file: FoundFile) -> None:
        """Raise InputError if none of the file's first rows has an image, or none has a caption."""
        names: dict[str, None] = {}
        rows = 0
        for index, (_, position, content) in enumerate(_lines(Shard(url=file.url, name=file.name, first_row=1))):
            with suppress(RowFault):
                row = _object_in(content, at_start=position == 0)
                rows += 1
                names.update(dict.fromkeys(key for key, value in row.items() if value is not None))
            if index + 1 == _PROBE_ROWS:
                break
        fields = self.rows.fields
        for key, wanted in (("image", fields.image_fields), ("caption", fields.caption_fields)):
            if rows >= _MIN_PROBE_ROWS and not any(name in names for name in wanted):
                present = ", ".join(shorten(name, 40) for name in list(names)[:20]) or "none"
                expected = " or ".join(map(repr, wanted))
                raise InputError(
                    f"{file.url}: none of the first {rows} rows has the field {expected}; "
                    f"the fields are {present}. Set input.{key} to the right one"
                )


def _object_in(content: bytes | RowFault, *, at_start: bool) -> dict[str, Any]:
    if isinstance(content, RowFault):
        raise content
    return json_object(content, at_start=at_start)


def _lines(shard: Shard) -> Iterator[Line]:
    """The shard's lines that are not blank."""
    with open_plain(shard.url) as stream:
        for line in iter_lines(stream, start=shard.start, stop=shard.stop, number=shard.first_row):
            _, position, content = line
            if isinstance(content, bytes) and position == 0:
                content = content.removeprefix(codecs.BOM_UTF8)
            if isinstance(content, RowFault) or content.strip(b" \t\r"):
                yield line
