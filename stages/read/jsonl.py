"""JSON Lines: one object with an image path and captions in each line; or a JSON list of such objects.

    {"image": "kitchen/1.jpg", "caption": "a red cup on a table", "id": "k1"}
    {"image": "kitchen/2.jpg", "captions": ["two cats", "cats asleep on a sofa"]}

TAO's `image_path`, Hugging Face imagefolder's `file_name` + `text` and Rex-Omni's rows are read
without any setting, and so are the conversations of LLaVA and ShareGPT4V (`turns`). Blank lines
are not rows. Planning reads each file once, to find where pieces begin, and repeated ids.

In a `.json` file that is one list, rows count from 1 as lines do. Such a file cannot be read in
parts: planning loads it whole, which takes about 6 times its size in memory, and each piece
carries its rows, compressed.
"""

from __future__ import annotations

import codecs
import json
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from io import BytesIO
from itertools import islice
from typing import Any, Final, Literal

from phrasebox.stages.contract.errors import InputError, RowFault, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read.base import COMPRESSION_SUFFIXES, Piece
from phrasebox.stages.read.find import SourceFile
from phrasebox.stages.read.lines import LinesConfig, LinesReader
from phrasebox.stages.read.rows import json_object
from phrasebox.stages.read.streams import (
    PEEK_BYTES,
    Stream,
    begins_list,
    enough_memory,
    open_plain,
    read_whole,
)

_PROBE_ROWS: Final = 100
_MIN_PROBE_ROWS: Final = 10


class JsonlInput(LinesConfig):
    """Keys of `input` for `kind: jsonl`."""

    kind: Literal["jsonl"] = "jsonl"


class JsonlReader(LinesReader):
    """Reads `kind: jsonl`."""

    config_type = JsonlInput
    suffixes = tuple(f".{kind}{end}" for kind in ("jsonl", "ndjson") for end in COMPRESSION_SUFFIXES)

    def whole_file(self, file: SourceFile) -> Piece:
        """Return the piece of a file; it carries the elements of a list as lines.

        Raise InputError for a file of ten rows or more if none of its first rows has an image,
        or a caption.
        """
        piece = super().whole_file(file)
        lines = _lines_of_list(file.url)
        if lines is not None:
            piece = replace(piece, payload=zlib.compress(lines), stamp=None)
        rows = [
            row for _, _, row in islice(self.fields(piece), _PROBE_ROWS) if not isinstance(row, RowFault)
        ]
        if len(rows) >= _MIN_PROBE_ROWS:
            names = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
            expected = f"{piece.url}: none of the first {len(rows)} rows has the field"
            self.parser.check_fields(list(names), expected)
        return replace(piece, turns=next(filter(None, map(self.parser.turns_field, rows)), ""))

    def pieces(self) -> list[Piece]:
        """See `LinesReader.pieces`. Pieces of a list carry their own elements."""
        pieces = super().pieces()
        lists = {
            payload: zlib.decompress(payload) for payload in {piece.payload for piece in pieces} if payload
        }
        for number, piece in enumerate(pieces):
            if piece.payload:
                lines = lists[piece.payload][piece.start : piece.stop]
                pieces[number] = replace(piece, start=0, stop=None, payload=zlib.compress(lines))
        return pieces

    def open(self, piece: Piece) -> AbstractContextManager[Stream]:
        """Open the file of a piece, or the elements that it carries."""
        if piece.payload:
            return nullcontext(BytesIO(zlib.decompress(piece.payload)))
        return super().open(piece)

    def row_of(self, line: bytes) -> Json | None:
        """Return the object in a line that is not blank."""
        is_blank = not line.removeprefix(codecs.BOM_UTF8).strip(b" \t\r")
        return None if is_blank else json_object(line)


def _lines_of_list(url: str) -> bytes | None:
    """The elements of a JSON file that is one list as lines; None for a file of lines.

    Raise InputError if the file begins like a list and is not JSON.
    """
    if not url.lower().endswith((".json", ".json.gz")):
        return None
    try:
        with open_plain(url) as stream:
            if not begins_list(stream.read(PEEK_BYTES)):
                return None
        with enough_memory(url):
            elements: list[Any] = json.loads(read_whole(url).decode("utf-8-sig"))
            return "\n".join(map(json.dumps, elements)).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{url} begins like a JSON list but is not one: {one_line(error)}") from error
    except RowFault as fault:
        raise InputError(f"cannot read {url}: {fault.error.detail}") from fault
