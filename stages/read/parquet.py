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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from phrasebox.stages.contract.errors import InputError, RowFault, one_line
from phrasebox.stages.contract.records import stable_key
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import is_local
from phrasebox.stages.read.base import BATCH_BYTES, InputRow, Piece, Reader, ReaderConfig, SkippedRow
from phrasebox.stages.read.find import SourceFile, find_files
from phrasebox.stages.read.parquet_columns import Columns, values_of
from phrasebox.stages.read.plan import mark_repeats, unique_samples
from phrasebox.stages.read.rows import FieldsConfig, RowParser, bad_row, safe_place
from phrasebox.stages.read.stamps import stamp_of
from phrasebox.stages.read.streams import InputFile, input_errors

_PLAN_THREADS: Final = 16
_BATCH_ROWS: Final = 32
_ROW_BYTES: Final = 64 * 1024 * 1024  # Of a batch of rows, which the reader only hands on one by one
_ID_BATCH_ROWS: Final = 65_536
_REPEATING: Final = {"PLAIN_DICTIONARY", "RLE_DICTIONARY", "DELTA_BYTE_ARRAY"}
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
            plans = list(pool.map(self._plan, files))
        if all(pieces and pieces[0].payload for pieces, _ in plans):
            raise InputError(f"{files[0].url} is not a Parquet file: {plans[0][0][0].payload.decode()}")
        all_pieces = [piece for pieces, _ in plans for piece in pieces]
        if not any(keys for _, keys in plans):
            return all_pieces
        all_keys = array("q")
        for pieces, keys in plans:
            all_keys.extend(keys or array("q", map(stable_key, _places(pieces))))
        return mark_repeats(all_pieces, all_keys)

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
            rows = _rows(file, groups, columns.names, _BATCH_ROWS, _ROW_BYTES)
            for number, row in enumerate(rows, start=piece.first_row):
                if isinstance(row, RowFault):
                    yield bad_row(safe_place(piece.name, number), row)
                else:
                    yield _item(row, columns, parser, piece, number)

    def _plan(self, file: SourceFile) -> tuple[list[Piece], array[int] | None]:
        """Return the pieces of a file by its footer, and the keys of its ids if it has columns of ids.

        A damaged file is one piece that carries the damage.
        """
        stamp = stamp_of(file.url, file.stamp)
        try:
            with input_errors(file.url), _damage(), _open(file.url) as parquet:
                columns = Columns.of(parquet.schema_arrow, self.config, file.url)
                keys = None
                if columns.id_columns:
                    keys = array("q", map(stable_key, _ids(parquet, columns, file.name)))
                whole_file = Piece(url=file.url, name=file.name, turns=columns.turns, stamp=stamp)
                return list(_cut(whole_file, parquet.metadata, self.config.piece_size)), keys
        except RowFault as fault:
            return [
                Piece(url=file.url, name=file.name, samples=1, payload=fault.error.detail.encode())
            ], None


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


def _rows(
    file: Any, groups: Iterable[int], names: list[str], batch_rows: int, batch_bytes: int
) -> Iterator[Json | RowFault]:
    """The rows of row groups by column name; those behind damage in their group are faults.

    So many are decoded at once, and no more bytes unless a single row has more.
    """
    for group in groups:
        footer = file.metadata.row_group(group)
        remaining = footer.num_rows
        rows = min(batch_rows, _rows_within(batch_bytes, footer, names))
        try:
            with _damage(f"row group {group} is damaged: "):
                for batch in file.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                    table = [values_of(batch.column(name)) for name in names]
                    for values in zip(*table, strict=True):
                        yield dict(zip(names, values, strict=True))
                        remaining -= 1
        except RowFault as fault:
            yield from repeat(fault, remaining)


def _rows_within(batch_bytes: int, group: Any, names: list[str]) -> int:
    """Return how many rows of a row group have so many bytes at most; 1 if that is not sure of two.

    No value is larger than all pages of its column. But many rows may repeat it, where an encoding refers to a value
    instead of holding it.
    """
    rows: int = group.num_rows
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.partition(".")[0] in names:
            size = column.total_uncompressed_size
            if size > batch_bytes or not _REPEATING.isdisjoint(column.encodings):
                rows = min(rows, batch_bytes // max(size, 1))
    return max(1, rows)


def _ids(file: Any, columns: Columns, name: str) -> Iterator[str]:
    """The ids of the rows of a file; rows of a damaged row group have their places."""
    parser = RowParser(fields=columns.fields, image_root=None)
    for number, row in enumerate(
        _rows(file, range(file.num_row_groups), columns.id_columns, _ID_BATCH_ROWS, BATCH_BYTES)
    ):
        place = safe_place(name, number)
        yield (
            place if isinstance(row, RowFault) else parser.id_of(row, columns.default_id(row, name, place))
        )


def _cut(file: Piece, metadata: Any, piece_size: int) -> Iterator[Piece]:
    start = first_row = rows = 0
    for stop in range(1, metadata.num_row_groups + 1):
        rows += metadata.row_group(stop - 1).num_rows
        if rows >= piece_size or (rows and stop == metadata.num_row_groups):
            yield replace(file, start=start, stop=stop, first_row=first_row, samples=rows)
            start = stop
            first_row += rows
            rows = 0


def _places(pieces: Sequence[Piece]) -> Iterator[str]:
    """Yield the places of the rows of a file: the ids of rows without an id."""
    for piece in pieces:
        rows = range(piece.first_row, piece.first_row + (piece.samples or 0))
        yield from (safe_place(piece.name, row) for row in (["footer"] if piece.payload else rows))
