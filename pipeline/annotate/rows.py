"""The rows of a table as samples, by the rules of the readers of a run; a fault of a row is an error of its sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from phrasebox.pipeline.annotate.config import TableInput
from phrasebox.pipeline.annotate.tables import Table, plain
from phrasebox.pipeline.pictures import encode_pixels
from phrasebox.stages.contract.errors import ConfigError, InputError, RowError, RowFault, kind_of_value
from phrasebox.stages.contract.records import ImageRef, Sample
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read import Piece, Reader
from phrasebox.stages.read.parquet_columns import Columns
from phrasebox.stages.read.rows import CAPTION_FIELDS, RowParser

PHRASE_FIELDS: Final = ("phrase", "phrases")
"""Searched in this order, in a table without captions."""

PIECE_ROWS: Final = 1000  # as a run cuts Parquet files

TABLE: Final = "the table"  # its name in messages


class MemoryReader(Reader):
    """Reads the samples of a table of a caller, whose rows are no files.

    A row without an id has one of its image and its texts, so that it does not depend on the other rows.

    Attributes:
        asks: Whether the texts of the samples are questions, and not captions.

    Args:
        table: The table.
        config: The columns; `image_root` is absolute.

    Raises:
        InputError: There is no column of images or of texts, or no image root.
    """

    def __init__(self, table: Table, config: TableInput) -> None:
        if config.phrase is not None and config.caption is not None:
            raise ConfigError(
                "a table has captions or phrases, and not both: leave one out", key="input.phrase"
            )
        self._table = table
        schema = table.schema
        phrase = _phrase_column(schema.names, config)
        self.asks = phrase is not None
        fields = config if phrase is None else config.model_copy(update={"caption": phrase})
        self._columns = Columns.of(schema, fields, TABLE)
        named = self._columns.fields.model_copy(update={"turns": config.turns})
        self._parser = RowParser(fields=named, image_root=config.image_root)
        self._parser.check_image_root()

    def __len__(self) -> int:
        return len(self._table)

    def pieces(self) -> list[Piece]:
        """Plan the table, see `Reader.pieces`."""
        starts = range(0, len(self), PIECE_ROWS)
        spans = [(start, min(start + PIECE_ROWS, len(self))) for start in starts]
        return [
            Piece(url=TABLE, name="", start=start, stop=stop, samples=stop - start) for start, stop in spans
        ]

    def read(self, piece: Piece) -> Iterator[Sample]:
        """Yield the samples of a piece, see `Reader.read`."""
        for row in self._table.rows(self._columns.names, piece.start, piece.stop or len(self)):
            yield self._sample({name: plain(value) for name, value in row.items()}, piece)

    def _sample(self, row: Json, piece: Piece) -> Sample:
        columns = self._columns
        fault: RowFault | None = None
        image: Json = {}
        try:
            image = _struct_of(columns.image, row[columns.image])
        except RowFault as image_fault:
            fault = image_fault
        default_id = _content_id(image, [row[name] for name in columns.captions])
        row = {**row, columns.image: image.get("path")}
        place = self._parser.id_of(row, default_id)
        sample = self._parser.sample(
            row,
            place=place,
            piece=piece,
            default_id=default_id,
            image=partial(_image, columns.image, image, fault),
        )
        if columns.status is not None and row[columns.status] not in (None, "success"):
            error = RowError(
                reason="failed_download", detail=f"{columns.status} is {row[columns.status]!r}"
            )
            return replace(sample, error=error.at(place))
        return sample


def _phrase_column(names: Any, config: TableInput) -> str | None:
    """Return the column of phrases that stand in the place of captions; None where there are captions."""
    if config.phrase is not None or config.caption is not None:
        return config.phrase
    if not set(CAPTION_FIELDS).isdisjoint(names):
        return None
    return next((name for name in PHRASE_FIELDS if name in names), None)


def _struct_of(name: str, value: Any) -> Json:
    """Return bytes and path of an image in any form. Raise RowFault (missing_image, bad_row, bad_image)."""
    if value is None:
        raise RowFault("missing_image", f"the column {name!r} is null")
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, bytes):
        return {"bytes": value}
    if isinstance(value, dict):
        content = plain(value.get("bytes"))
        path = value.get("path")
        if not (isinstance(content, bytes | None) and isinstance(path, str | None)):
            raise RowFault("bad_row", f"{name!r} has other values than bytes and a path")
        if content is None and path is None:
            raise RowFault("missing_image", f"the column {name!r} has neither bytes nor a path")
        return {"bytes": content, "path": path}
    try:
        return {"bytes": encode_pixels(value), "path": getattr(value, "filename", None) or None}
    except InputError as error:
        raise RowFault("bad_row", f"{name!r} is {kind_of_value(value)}: {error}") from error


def _image(name: str, image: Json, fault: RowFault | None) -> ImageRef | None:
    """Return the image that a row holds; None if it has a path only. Raise the fault."""
    if fault is not None:
        raise fault
    content = image.get("bytes")
    return None if content is None else ImageRef(file_name=image.get("path") or name, content=content)


def _content_id(image: Json, texts: list[Any]) -> str:
    """Return an id of image and texts, with the path of the image in front."""
    digest = blake2b(image.get("bytes") or b"", digest_size=8)
    digest.update(repr((image.get("path"), texts)).encode("utf-8", "backslashreplace"))
    path = image.get("path")
    return digest.hexdigest() if path is None else f"{path}#{digest.hexdigest()}"
