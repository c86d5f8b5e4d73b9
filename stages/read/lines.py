"""Tables of lines, which are cut into parts and never held whole.

Captions of one image are often in separate rows, one after the other. They are one sample,
since all regions of an image belong together: it has the captions of the rows in order, and id
and place of the first row. Bad rows, and rows with different ids, are separate samples.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final, NamedTuple

from pydantic import Field

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.contract.records import Sample, stable_key
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read.base import InputRow, Piece, Reader, ReaderConfig
from phrasebox.stages.read.find import SourceFile, find_files
from phrasebox.stages.read.plan import mark_repeats, unique_samples
from phrasebox.stages.read.rows import FieldsConfig, RowParser, bad_row, safe_place
from phrasebox.stages.read.stamps import stamp_of
from phrasebox.stages.read.streams import Stream, is_compressed, iter_lines, open_plain

MOST_ROWS: Final = 1000
"""Rows of one sample; more rows of the same image are another sample.

Visual Genome has some 50 per image.
"""

Fields = tuple[int, int, Json | RowFault]
"""A row: the number of its first line, its first byte, and its fields by name or its fault."""


class LinesConfig(ReaderConfig, FieldsConfig):
    """The common keys of `input` for tables of lines."""

    piece_size: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Samples that one worker reads at once; compressed files are not cut.",
    )
    group_rows: bool = Field(
        True,
        description="Whether rows of one image that follow each other are one sample with all "
        "their captions, unless they give different ids. False makes each row a sample.",
    )


class Row(NamedTuple):
    """A row of a table of lines.

    Attributes:
        number: Number of its first line in messages.
        position: Its first byte.
        sample: The sample of this row alone; it has an `error` if the row is bad.
    """

    number: int
    position: int
    sample: Sample

    @property
    def id(self) -> str | None:
        """The id that the row gives; None if its place is its id."""
        return None if self.sample.sample_id == self.sample.source else self.sample.sample_id

    def follows(self, row: Row) -> bool:
        """Return whether both rows are good, name the same image, and give the same id or none."""
        sample = self.sample
        previous = row.sample
        if sample.image.file_name != previous.image.file_name or self.id != row.id:
            return False
        return sample.error is None and previous.error is None


class TableReader(Reader):
    """Read tables of lines; a subclass says which rows they hold.

    Rows without an id get "FILE:LINE".
    """

    def __init__(self, config: LinesConfig) -> None:
        self.config = config
        self.parser = RowParser.of(config)

    def whole_file(self, file: SourceFile) -> Piece:
        """Return the piece of a whole file, with its stamp.

        Raise InputError if the file cannot be read at all.
        """
        return Piece(url=file.url, name=file.name, first_row=1, stamp=stamp_of(file.url, file.stamp))

    @abstractmethod
    def fields(self, piece: Piece) -> Iterator[Fields]:
        """Yield the rows of a piece, in order."""

    def pieces(self) -> list[Piece]:
        """Plan the input: each file is read once, to find where pieces begin, and repeated ids."""
        files = find_files(self.config.path, self.suffixes)
        self.parser.check_image_root()
        keys = array("q")
        whole_files = [self.whole_file(file) for file in files]
        return mark_repeats(
            [piece for file in whole_files for piece in self._cut(file, keys)],
            keys,
        )

    def read(self, piece: Piece) -> Iterator[InputRow]:
        """Yield the samples of a piece."""
        return unique_samples(map(_join_rows, self._groups(piece)), piece)

    def _cut(self, file: Piece, keys: array[int]) -> list[Piece]:
        """Cut a file into pieces of `piece_size` samples, and append the keys of these.

        A compressed file is one piece, since it has no random access.
        """
        firsts: list[Row] = []
        samples: list[int] = []
        rows: list[int] = []
        for count, group in enumerate(self._groups(file)):
            if not firsts or (count % self.config.piece_size == 0 and not is_compressed(file.url)):
                firsts.append(group[0])
                samples.append(0)
                rows.append(0)
            keys.append(stable_key(group[0].sample.sample_id))
            samples[-1] += 1
            rows[-1] += len(group)
        stops = [*(first.position for first in firsts[1:]), None]
        return [
            replace(
                file,
                start=first.position,
                stop=stop,
                first_row=first.number,
                samples=samples[part],
                rows=rows[part],
            )
            for part, (first, stop) in enumerate(zip(firsts, stops, strict=False))
        ]

    def _groups(self, piece: Piece) -> Iterator[list[Row]]:
        """Yield the rows of each sample."""
        group: list[Row] = []
        for number, position, fields in self.fields(piece):
            row = Row(number, position, self._sample(fields, piece, safe_place(piece.name, number)))
            if group and not (self.config.group_rows and len(group) < MOST_ROWS and row.follows(group[-1])):
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _sample(self, fields: Json | RowFault, piece: Piece, place: str) -> Sample:
        if isinstance(fields, RowFault):
            return bad_row(place, fields)
        return self.parser.sample(fields, place=place, piece=piece)


class LinesReader(TableReader):
    """Read files in which each line is a row or none; a subclass says what stands in a line."""

    @abstractmethod
    def row_of(self, line: bytes) -> Json | None:
        """Return the fields of a line by name; None if the line is no row. Raise RowFault for a bad row."""

    def open(self, piece: Piece) -> AbstractContextManager[Stream]:
        """Open the file of a piece, decompressed."""
        return open_plain(piece.url)

    def fields(self, piece: Piece) -> Iterator[Fields]:
        """Yield the lines that are rows."""
        with self.open(piece) as stream:
            for number, position, line in iter_lines(stream, piece.start, piece.stop, piece.first_row):
                try:
                    row = line if isinstance(line, RowFault) else self.row_of(line)
                except RowFault as fault:
                    row = fault
                if row is not None:
                    yield number, position, row


def _join_rows(rows: Sequence[Row]) -> Sample:
    captions = tuple(text for row in rows for text in row.sample.captions)
    return replace(rows[0].sample, captions=captions)
