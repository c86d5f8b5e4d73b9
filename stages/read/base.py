"""The contract of readers, the pieces of an input, and rows that are left out (`SkippedRow`).

A reader works in two steps. `pieces()` plans on the driver: it finds the files, rejects an
input that cannot be read as a whole, and cuts the rest into pieces. `read(piece)` runs on any
worker and gives exactly one `Sample` or `SkippedRow` for every row of the piece, in the order of
the input; rows of one image may share a sample (`plan`). The samples do not depend on the cuts.
With `input.limit` reading ends in `LimitedReader`: it plans no piece behind the limit, and cuts the last one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from phrasebox.stages.contract.errors import ConfigError, InputError, Reason, one_line
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.read.stamps import Stamp, check_end, check_row

IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions of images that are files or members of tars, in the order of the search."""

COMPRESSION_SUFFIXES: Final = ("", ".gz", ".bz2", ".xz", ".zst")  # after the suffix of a file of lines

MAX_TEXT_BYTES: Final = 16 * 1024 * 1024  # Larger texts and JSON members are faults

BATCH_BYTES: Final = 512 * 1024 * 1024
"""Bytes of images and captions that one batch of rows holds, beside its number of rows.

A batch ends with the row that reaches them. 128 photographs of 4 MB stay one batch."""


class ReaderConfig(BaseModel):
    """The keys that every kind of input has.

    Attributes:
        images_are_files: Whether images are files below `image_root` or, without one, below the
            folder of `path`; if not, the files of `path` hold them.
    """

    images_are_files: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="A key of `READERS`.")
    path: str | tuple[str, ...] = Field(
        description="A file, a folder (all files of the kind below it), a glob, a numeric range "
        "as in `{00000..00099}.tar`, or a list of these; local or any URL that fsspec or "
        "pyarrow opens."
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="Read only the first N samples. The same command with a larger limit adds others.",
    )
    part: str | None = Field(
        None,
        description="Run over a part of the input: 3/8 takes the third of eight equal parts, "
        "each of samples that follow each other. Tars are not cut, unless there is a limit. "
        "Each part is a run with a folder of its own, on any machine that has the same files "
        "in the same place; `phrasebox merge` makes one dataset of all parts.",
    )

    phrases: str | None = Field(
        None,
        description="A local file of captions and their phrases, as `phrasebox phrases INPUT "
        "--out FILE` writes it; it may have been corrected by hand. Captions that it lacks are "
        "parsed as without it.",
    )

    @field_validator("part")
    @classmethod
    def _check_part(cls, part: str | None) -> str | None:
        number, slash, parts = (part or "1/1").partition("/")
        if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
            raise ValueError("expected a part and the number of all parts, from 1/8 to 8/8")
        return part

    @property
    def extent(self) -> str:
        """The name of the input, or of the part that is read, for people."""
        return "the input" if self.part is None else f"part {self.part} of the input"

    def take_part(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Return the pieces of this part.

        The first and the last may be cut: parts differ by one sample at most. If a piece does
        not know its number of samples, parts consist of whole pieces: counting would read the
        input.
        """
        number, parts = (int(text) for text in (self.part or "1/1").split("/"))
        has_counts = all(piece.samples is not None for piece in pieces)
        counts = [(piece.samples or 0) if has_counts else 1 for piece in pieces]
        start, stop = (place * sum(counts) // parts for place in (number - 1, number))
        return cut_pieces(pieces, counts, start, stop)

    @model_validator(mode="before")
    @classmethod
    def _check_image_root(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("image_root") and "image_root" not in cls.model_fields:
            raise ConfigError(
                f"images of a {values.get('kind')} input are found in the input itself ({values.get('path')}): leave "
                "it out",
                key="input.image_root",
            )
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of the input, which one worker reads at once. Small and picklable.

    `input.part` and `ReaderConfig.take_part` are about the share of a whole run: many pieces. The
    files that a run writes are shards.

    Attributes:
        url: Absolute location of the file.
        name: The path relative to the input's common folder, for sample ids and messages.
        start: Begin of the piece: a byte (jsonl, csv), a row group (parquet), else a row.
        stop: End of the piece, exclusive, in the same unit; None for the end of the file.
        first_row: Number of the first row in messages: lines count from 1, Parquet rows from 0.
        skip: Number of samples at the begin that are left out, see `LimitedReader`.
        samples: Number of samples after these; None if they are not known before reading.
        rows: Number of rows of these samples, if several may be one sample, else None.
        repeats: Indices, from 0, of the samples with an id that an earlier sample has.
        turns: The field whose turns are captions, for a note; "" if captions are no conversations.
        payload: Further data of the kind (a header, rows from a file that cannot be cut).
        stamp: The state of the file when it was planned; None if it does not matter.
    """

    url: str
    name: str
    start: int = 0
    stop: int | None = None
    first_row: int = 0
    skip: int = 0
    samples: int | None = None
    rows: int | None = None
    repeats: tuple[int, ...] = ()
    turns: str = ""
    payload: bytes = b""
    stamp: Stamp | None = field(default=None, repr=False)  # `repr` identifies a piece, wherever it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRow:
    """A row of the input without a sample, because its download had failed.

    Attributes:
        reason: For counting.
        source: The place of the row, for people.
    """

    reason: Reason
    source: str


InputRow = Sample | SkippedRow


class Reader(ABC):
    """Read one kind of input. Instances are cheap, picklable and hold only their configuration.

    Attributes:
        config_type: The kind's keys of `input`, with `kind: Literal["x"]`.
        suffixes: Ends of file names of the kind, in lower case and with the dot.
        suffixes_beside: Suffixes of files that belong to the input, but do not decide its kind.
    """

    config_type: ClassVar[type[ReaderConfig]]
    suffixes: ClassVar[tuple[str, ...]]
    suffixes_beside: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """Plan the input, on the driver. An input without rows gives an empty list.

        Raises:
            InputError: The input as a whole cannot be read: a file or a column is missing, a
                glob matches nothing.
        """

    @abstractmethod
    def read(self, piece: Piece) -> Iterator[InputRow]:
        """Yield the rows of one piece, in order; bad rows are samples with an `error`.

        Raise InputError if the piece's file is gone since the input was planned.
        """

    def samples(self, pieces: Iterable[Piece]) -> Iterator[Sample]:
        """Yield all samples of some pieces, in order. Raise InputError as `read_piece`."""
        for piece in pieces:
            for item in read_piece(self, piece):
                if isinstance(item, Sample):
                    yield item


def cut_pieces(pieces: Sequence[Piece], counts: Sequence[int], start: int, stop: int) -> list[Piece]:
    """Return what lies from `start` to `stop`, exclusive, of pieces with these numbers of samples."""
    part: list[Piece] = []
    for piece, count, end in zip(pieces, counts, accumulate(counts), strict=True):
        first = max(start, end - count)
        last = min(stop, end)
        if last - first == count:
            part.append(piece)
        elif first < last:
            part.append(replace(piece, skip=first - end + count, samples=last - first, rows=None))
    return part


class LimitedReader(Reader):
    """Read cut pieces of another reader: the `samples` after the first `skip`.

    With a `limit`, the input ends after so many samples; a `SkippedRow` counts as one.
    """

    def __init__(self, reader: Reader, limit: int | None) -> None:
        self._reader = reader
        self._limit = limit

    def pieces(self) -> list[Piece]:
        """Plan the input.

        With a limit, pieces that do not know their number of samples are read to count them.
        """
        if self._limit is None:
            return self._reader.pieces()
        pieces: list[Piece] = []
        counts: list[int] = []
        for piece in self._reader.pieces():
            rows = piece.samples
            if rows is None:
                rows = sum(1 for _ in islice(self._reader.read(piece), self._limit - sum(counts)))
            counts.append(rows)
            pieces.append(replace(piece, samples=rows))
            if sum(counts) >= self._limit:
                break
        return cut_pieces(pieces, counts, 0, self._limit)

    def read(self, piece: Piece) -> Iterator[InputRow]:
        """See `Reader.read`."""
        rows = self._reader.read(piece)
        with closing(rows):  # type: ignore[type-var]  # readers are generators
            yield from islice(
                rows,
                piece.skip,
                None if piece.samples is None else piece.skip + piece.samples,
            )


def read_piece(reader: Reader, piece: Piece) -> Iterator[InputRow]:
    """Yield the rows of one piece as `Reader.read` does, for runs, which also write.

    Raise InputError if the file changes meanwhile, see `phrasebox.stages.read.stamps`, if a row does not fit into
    the memory, or if the disk or the network fails: a run would take an OSError for an error of writing, since
    object storage does not distinguish the two.
    """
    place = f"the beginning of a piece of {piece.name}"  # the last row that was taken
    try:
        for item in reader.read(piece):
            check_row(piece.url, piece.stamp, place)
            yield item
            place = item.source
    except Exception as error:
        check_row(piece.url, piece.stamp, place)  # a reader fails in any way where bytes move under it
        if isinstance(error, OSError):
            raise InputError(f"cannot read {piece.url}: {error.strerror or one_line(error)}") from error
        if isinstance(error, MemoryError):
            raise InputError(f"{piece.url}: what follows {place} does not fit into the memory") from error
        raise
    check_end(piece.url, piece.stamp, place)
