"""Readers: captioned images of any kind as `Sample`s, in pieces.

docs/how-to/extend.md says how to add a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import BeforeValidator, SerializeAsAny

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.kinds import KindTable, with_absolute_files
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read.base import LimitedReader, Piece, Reader, ReaderConfig, SkippedRow, read_piece
from phrasebox.stages.read.find import find_files, fingerprint_of, kind_of
from phrasebox.stages.read.plan import input_notes, plan_pieces
from phrasebox.stages.read.rows import FieldsConfig, RowParser

__all__ = [
    "READERS",
    "InputConfig",
    "Piece",
    "Reader",
    "ReaderConfig",
    "SkippedRow",
    "guess_kind",
    "input_fingerprint",
    "input_notes",
    "make_reader",
    "plan_pieces",
    "read_piece",
    "reader_for",
]  # fmt: skip

READERS: Final[KindTable[Reader]] = KindTable(
    "phrasebox.readers", order=("webdataset", "parquet", "jsonl", "csv", "folder", "coco_captions")
)
"""The readers.

Folders are searched for the kinds in this order: img2dataset puts a Parquet file and a JSON
beside each tar, and images are beside the tables that name them."""

InputConfig = Annotated[
    SerializeAsAny[ReaderConfig], BeforeValidator(READERS.config)
]  # The `input` section of a run


def make_reader(config: InputConfig) -> Reader:
    """Return the reader of an input.

    Relative paths are resolved here, so call it where the run starts.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "captions.jsonl")
    ...     _ = path.write_text('{"image": "1.jpg", "caption": "a red cup"}')
    ...     reader = make_reader(READERS.config(guess_kind(str(path))))
    ...     [(sample.sample_id, sample.captions) for sample in reader.samples(reader.pieces())]
    [('captions.jsonl:1', ('a red cup',))]
    """
    return reader_for(READERS[config.kind], config)


def reader_for(kind: type[Reader], config: ReaderConfig) -> Reader:
    """Return a reader of a class, which reads the limit or the part that the settings name."""
    reader = kind(with_absolute_files(config))
    return reader if config.limit is None and config.part is None else LimitedReader(reader, config.limit)


def input_fingerprint(config: InputConfig) -> str:
    """Return a text that changes if files of the input are added, removed or written, or if the limit changes.

    Images in other files are not checked. Raise InputError if there are no such files, or no
    such image root.
    """
    reader = READERS[config.kind]
    RowParser.of(FieldsConfig(image_root=getattr(config, "image_root", None))).check_image_root()
    suffixes = (*reader.suffixes, *reader.suffixes_beside)
    fingerprint = fingerprint_of(find_files(config.path, suffixes))
    return fingerprint if config.limit is None else f"{fingerprint} {config.limit}"


def guess_kind(path: str | Sequence[str]) -> Json:
    """Return the keys of the `input` section for a path, such as `{"kind": "csv", "path": "captions.tsv"}`.

    The path is as `input.path`. Raise InputError if it does not exist, or is of an unknown
    kind, or of several kinds.
    """
    paths = (path,) if isinstance(path, str) else tuple(path)
    readers, messages = READERS.load_all()
    try:
        kinds = {kind_of(entry, readers) for entry in paths}
    except InputError as error:
        # A reader that does not load may be the one for it.
        raise InputError("; ".join([*error.args, *messages]), key=error.key) from error
    if len(kinds) != 1:
        raise InputError(
            f"expected inputs of one kind, got {' and '.join(sorted(kinds)) or 'none'}: run them one after the other"
        )
    return {"kind": kinds.pop(), "path": path if isinstance(path, str) else paths}
