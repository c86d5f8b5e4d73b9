"""Parquet with images in it, or with paths to them.

Three forms are recognised by their columns (`parquet_columns`):

- Hugging Face: `image: struct<bytes, path>` and a text column. If the bytes are null, the path
  is taken, below `image_root`.
- img2dataset (`output_format=parquet`): bytes in a column named `jpg`, `png` or `webp`, `txt`
  or `caption`, `key`, `status`. Rows without bytes or with a status other than "success" are
  failed downloads: they are skipped and counted.
- A column of paths below `image_root`, as in jsonl.

A sample's id comes from the column `input.id` or `sample_id`; else it is "FILE/KEY" with
img2dataset's `key`, else "FILE:ROW", counted from 0. Planning reads the footers of all files
and the columns of ids, to find repeated ids. A file that is damaged or not Parquet at all is
one bad row "FILE:footer", unless no file is readable.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages.contract.errors import InputError, RowFault, one_line
from stages.contract.records import stable_key
from stages.contract.values import Json
from stages.read.base import InputRow, Piece, Reader, ReaderConfig, SkippedRow
from stages.read.find import SourceFile, find_files
from stages.read.parquet_columns import Columns, values_of
from stages.read.plan import mark_repeats, unique_samples
from stages.read.rows import FieldsConfig, RowParser, bad_row, safe_place
from stages.read.streams import InputFile, input_errors
from stages.shared.storage import is_local

_PLAN_THREADS: Final = 16
_BATCH_ROWS: Final = 32
_ID_BATCH_ROWS: Final = 65_536
_BUFFER_BYTES: Final = 4 * 1024 * 1024


class ParquetInput(ReaderConfig, FieldsConfig):
    """Keys of `input` for `kind: parquet`."""

    images_are_files = False
    kind: Literal["parquet"] = "parquet"
    image: str | None = Field(
        None,
        description="Column with the image: its bytes, a struct of bytes and path, or its path. "
        "By default the first of `image`, `jpg`, `jpeg`, `png`, `webp`, `image_bytes`, "
        "`bytes`, `img` that holds bytes or a struct, else the only such struct, else a column "
        "of paths as in jsonl.",
    )
    piece_size: int = Field(
        1000, ge=1, le=1_000_000, description="Rows up to which whole row groups are joined to a piece."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footer:
    """The footer of a file, for planning: the rows of each row group, the keys of the ids, and its damage.

    `turns` is the column whose turns are captions; "" if they are no conversations.
    """

    group_rows: tuple[int, ...] = ()
    turns: str = ""
    keys: array[int] | None = None
    damage: str = ""


class ParquetReader(Reader):
    """Reads `kind: parquet`."""

    config_type = ParquetInput
    suffixes = (".parquet", ".pq")

    def __init__(self, config: ParquetInput) -> None:
        self.config = config
        self.rows = RowParser.of(config)

    def pieces(self) -> list[Piece]:
        """Plan the input by the footers of its files, and their ids."""
        files = find_files(self.config.path, self.suffixes)
        self.rows.check_image_root()
        with ThreadPoolExecutor(_PLAN_THREADS) as pool:
            footers = list(pool.map(self._footer, files))
        if all(footer.damage for footer in footers):
            raise InputError(f"{files[0].url} is not a Parquet file: {footers[0].damage}")
        pieces: list[Piece] = []
        for file, footer in zip(files, footers, strict=True):
            pieces += _cut(file, footer, self.config.piece_size)
        if not any(footer.keys for footer in footers):
            return pieces
        keys = array("q")
        for file, footer in zip(files, footers, strict=True):
            keys.extend(footer.keys or array("q", map(stable_key, _places(file, footer))))
        return mark_repeats(pieces, keys)

    def read(self, piece: Piece) -> Iterator[InputRow]:
        """Yield the rows of a piece.

        The remaining rows of a damaged row group are bad rows with places as ids.
        """
        if piece.payload:
            fault = RowFault("bad_row", f"not a Parquet file, or damaged: {piece.payload.decode()}")
            yield bad_row(safe_place(piece.name, "footer"), fault)
        else:
            yield from unique_samples(self._items(piece), piece)

    def _items(self, piece: Piece) -> Iterator[InputRow]:
        with _open(piece.url) as file:
            columns = Columns.of(file.schema_arrow, self.config, piece.url)
            fields = columns.fields.model_copy(update={"turns": self.config.turns})
            parser = RowParser(fields=fields, image_root=self.rows.image_root)
            groups = range(piece.start, piece.stop or file.num_row_groups)
            rows = _rows(file, groups, columns.names, _BATCH_ROWS)
            for number, row in enumerate(rows, start=piece.first_row):
                if isinstance(row, RowFault):
                    yield bad_row(safe_place(piece.name, number), row)
                else:
                    yield _item(row, columns, parser, piece, number)

    def _footer(self, file: SourceFile) -> _Footer:
        try:
            with input_errors(file.url), _damage(), _open(file.url) as parquet:
                columns = Columns.of(parquet.schema_arrow, self.config, file.url)
                metadata = parquet.metadata
                group_rows = tuple(
                    metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)
                )
                keys = None
                if columns.id_columns:
                    keys = array("q", map(stable_key, _ids(parquet, columns, file.name)))
        except RowFault as fault:
            return _Footer(damage=fault.error.detail)
        return _Footer(group_rows=group_rows, turns=columns.turns, keys=keys)


def _item(
    row: Json,
    columns: Columns,
    parser: RowParser,
    piece: Piece,
    number: int,
) -> InputRow:
    """Return the sample of a row; `number` counts the rows of the file from 0."""
    place = safe_place(piece.name, number)
    if columns.is_failed(row):
        return SkippedRow(reason="failed_download", source=place)
    return parser.sample(
        columns.with_path(row),
        place=place,
        piece=piece,
        default_id=columns.default_id(row, piece.name, place),
        image=partial(columns.inline_image, row, place),
    )


@contextmanager
def _open(url: str) -> Iterator[Any]:
    """A pyarrow ParquetFile that reads column chunks piece by piece and verifies checksums, if it has any.

    Raise InputError if there is no such file.
    """
    options = {
        "buffer_size": _BUFFER_BYTES,
        "pre_buffer": False,
        "page_checksum_verification": True,
    }
    with (
        closing(InputFile(url)) as stream,
        pq.ParquetFile(url if is_local(url) else stream, **options) as file,
    ):
        yield file


@contextmanager
def _damage(prefix: str = "") -> Iterator[None]:
    """Turn pyarrow's exceptions on damaged content into RowFault, but not errors of the disk or the network."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RowFault("bad_row", f"{prefix}{one_line(error)}") from error


def _rows(file: Any, groups: Iterable[int], names: list[str], batch_rows: int) -> Iterator[Json | RowFault]:
    """The rows of row groups by column name; those behind damage in their group are faults."""
    for group in groups:
        remaining = file.metadata.row_group(group).num_rows
        try:
            with _damage(f"row group {group} is damaged: "):
                for batch in file.iter_batches(
                    batch_rows, row_groups=[group], columns=names, use_threads=False
                ):
                    table = [values_of(batch.column(name)) for name in names]
                    for values in zip(*table, strict=True):
                        yield dict(zip(names, values, strict=True))
                        remaining -= 1
        except RowFault as fault:
            yield from repeat(fault, remaining)


def _ids(file: Any, columns: Columns, name: str) -> Iterator[str]:
    """The ids of the rows of a file; rows of a damaged row group have their places."""
    parser = RowParser(fields=columns.fields, image_root=None)
    for number, row in enumerate(
        _rows(file, range(file.num_row_groups), columns.id_columns, _ID_BATCH_ROWS)
    ):
        place = safe_place(name, number)
        yield (
            place if isinstance(row, RowFault) else parser.id_of(row, columns.default_id(row, name, place))
        )


def _cut(file: SourceFile, footer: _Footer, piece_size: int) -> Iterator[Piece]:
    if footer.damage:
        yield Piece(url=file.url, name=file.name, samples=1, payload=footer.damage.encode())
        return
    start = first_row = rows = 0
    for group, group_rows in enumerate(footer.group_rows):
        rows += group_rows
        if rows >= piece_size or (rows and group + 1 == len(footer.group_rows)):
            yield Piece(
                url=file.url,
                name=file.name,
                start=start,
                stop=group + 1,
                first_row=first_row,
                samples=rows,
                turns=footer.turns,
            )
            start = group + 1
            first_row += rows
            rows = 0


def _places(file: SourceFile, footer: _Footer) -> list[str]:
    """The places of the rows of a file: the ids of rows without an id."""
    rows = ["footer"] if footer.damage else range(sum(footer.group_rows))
    return [safe_place(file.name, row) for row in rows]
