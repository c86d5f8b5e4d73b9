"""JSON Lines: one object with an image path and captions in each line; or a JSON list of such objects.

    {"image": "kitchen/1.jpg", "caption": "a red cup on a table", "id": "k1"}
    {"image": "kitchen/2.jpg", "captions": ["two cats", "cats asleep on a sofa"]}

TAO's `image_path`, Hugging Face imagefolder's `file_name` + `text` and Rex-Omni's rows are read without any setting.
Blank lines are not rows. In a `.json` file that is one list, rows count from 1 as lines do. Planning reads each file
once, to find where shards begin and which ids are given twice.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Final, Literal

from stages.contract.errors import InputError, RowFault
from stages.contract.records import Sample
from stages.read.base import Reader, Shard, Skipped
from stages.read.find import find_files
from stages.read.plan import LinesConfig, Row, plan_lines, samples
from stages.read.rows import RowParser, json_object, shorten
from stages.read.streams import PEEK_BYTES, Line, begins_list, iter_elements, iter_lines, open_plain

_PROBE_ROWS: Final = 100
_MIN_PROBE_ROWS: Final = 10

_LIST: Final = b"list"
"""`Shard.payload` of a file that is one list."""


class JsonlInput(LinesConfig):
    """Keys of `input` for `kind: jsonl`."""

    kind: Literal["jsonl"] = "jsonl"


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

        A file of at least ten rows is rejected if none of its first hundred has an image, or a caption.
        """
        files = find_files(self.config.path, self.suffixes)
        self.rows.check_image_root()
        whole = {
            file.url: Shard(url=file.url, name=file.name, first_row=1, payload=_LIST if _is_list(file.url) else b"")
            for file in files
        }
        for shard in whole.values():
            self._probe(shard)
        shards = plan_lines(files, lambda file: self._rows(whole[file.url]), self.config)
        return [replace(shard, payload=whole[shard.url].payload) for shard in shards]

    def read(self, shard: Shard) -> Iterator[Sample | Skipped]:
        """See `base.Reader`."""
        return samples(self._rows(shard), self.config, shard)

    def _rows(self, shard: Shard) -> Iterator[Row]:
        for number, position, content in _lines(shard):
            fields: dict[str, Any] | RowFault
            try:
                fields = content if isinstance(content, RowFault) else json_object(content, at_start=position == 0)
            except RowFault as fault:
                fields = fault
            yield Row(number, position, fields, shard, self.rows)

    def _probe(self, shard: Shard) -> None:
        """Raise InputError if none of a file's first rows has an image, or none has a caption."""
        names: dict[str, None] = {}
        rows = 0
        for row in islice(self._rows(shard), _PROBE_ROWS):
            if not isinstance(row.fields, RowFault):
                rows += 1
                names.update(dict.fromkeys(key for key, value in row.fields.items() if value is not None))
        fields = self.rows.fields
        for key, wanted in (("image", fields.image_fields), ("caption", fields.caption_fields)):
            if rows >= _MIN_PROBE_ROWS and not any(name in names for name in wanted):
                present = ", ".join(shorten(name, 40) for name in list(names)[:20]) or "none"
                advice = f"Set input.{key} to the right one"
                if key == "caption" and "conversations" in names:
                    advice = "Conversations are not read: give each row the caption of its image"
                raise InputError(
                    f"{shard.url}: none of the first {rows} rows has the field {' or '.join(map(repr, wanted))}; "
                    f"the fields are {present}. {advice}"
                )


def _is_list(url: str) -> bool:
    """Return whether a JSON file is one list; files of other names hold lines."""
    if not url.lower().endswith((".json", ".json.gz")):
        return False
    with open_plain(url) as stream:
        return begins_list(stream.read(PEEK_BYTES))


def _lines(shard: Shard) -> Iterator[Line]:
    """The shard's lines that are not blank, or the elements of its list."""
    with open_plain(shard.url) as stream:
        if shard.payload == _LIST:
            yield from iter_elements(stream, start=shard.start, stop=shard.stop, number=shard.first_row)
            return
        for line in iter_lines(stream, start=shard.start, stop=shard.stop, number=shard.first_row):
            _, position, content = line
            if isinstance(content, bytes) and position == 0:
                content = content.removeprefix(codecs.BOM_UTF8)
            if isinstance(content, RowFault) or content.strip(b" \t\r"):
                yield line
