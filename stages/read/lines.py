"""Tables of lines, which are planned and read a part at a time: their rows, and which of them are one sample.

Captions of one image often stand in rows of their own, one after the other. They are one sample, since all regions of
an image belong together: its captions are those of the rows in order, its id and place those of the first row. Bad
rows, and rows that give ids of their own, are samples of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import Field

from stages.contract.errors import RowFault
from stages.contract.records import Sample
from stages.read.base import Shard, SourceConfig
from stages.read.plan import Entry
from stages.read.rows import FieldsConfig, RowParser, bad_row, first_value, safe_place, settle

MOST_ROWS: Final = 1000
"""Rows of one sample; more rows of the same image are a further sample. Visual Genome has some 50 an image."""


class LinesConfig(SourceConfig, FieldsConfig):
    """Keys of `input` that tables of lines have in common."""

    shard_size: int = Field(default=1000, ge=1, le=1_000_000)
    """Samples that one worker reads at once; compressed files are not cut."""

    group_rows: bool = True
    """Whether rows of one image that follow each other are one sample with all their captions, unless they give
    different ids. False makes each row a sample."""


class Row:
    """A row of a table, and the sample that it makes by itself.

    Attributes:
        number: Of its first line, as messages count.
        position: Its first byte.
        place: Its name in messages, and its id if it gives none.
        fields: What it holds, or why it could not be read.
        image: What it gives as its image, of any type; None if it gives none, or could not be read.
        given_id: What it gives as its id, likewise.
    """

    __slots__ = ("_parser", "_sample", "_shard", "fields", "given_id", "image", "number", "place", "position")

    def __init__(
        self, number: int, position: int, fields: Mapping[str, Any] | RowFault, shard: Shard, parser: RowParser
    ) -> None:
        self.number, self.position, self.fields = number, position, fields
        self.place = safe_place(shard.name, number)
        self._shard, self._parser = shard, parser
        self._sample: Sample | None = None
        names, readable = parser.fields, {} if isinstance(fields, RowFault) else fields
        self.image = first_value(readable, names.image_fields)
        self.given_id = first_value(readable, names.id_fields)

    @property
    def sample_id(self) -> str:
        """The id of its sample."""
        if isinstance(self.fields, RowFault) or self.given_id is None:
            return self.place
        return self._parser.id_of(self.fields, self.place)

    @property
    def sample(self) -> Sample:
        """Its sample, which has an `error` if the row is bad."""
        if self._sample is None:
            self._sample = (
                bad_row(self.place, self.fields)
                if isinstance(self.fields, RowFault)
                else self._parser.sample(self.fields, place=self.place, shard=self._shard, renamed=None)
            )
        return self._sample

    def follows(self, before: Row) -> bool:
        """Return whether both rows are good, name the same image in the same words, and give the same id or none."""
        if self.image is None or (self.image, self.given_id) != (before.image, before.given_id):
            return False  # without samples, which cost more: of most rows
        return before.sample.error is None and self.sample.error is None


def entries(rows: Iterable[Row], config: LinesConfig) -> Iterator[Entry]:
    """The samples of a file, for planning."""
    for group in _samples(rows, config):
        first = group[0]
        yield Entry(first.position, first.number, first.sample_id, first.place, len(group))


def samples(rows: Iterable[Row], config: LinesConfig, shard: Shard) -> Iterator[Sample]:
    """The samples of a shard, with the ids that they get."""
    renamed = {item.index: item for item in shard.renamed}
    for index, (first, *others) in enumerate(_samples(rows, config)):
        sample = first.sample
        if others:
            sample = replace(sample, captions=tuple(text for row in (first, *others) for text in row.sample.captions))
        if index in renamed:
            sample = settle(sample, [] if sample.error is None else [sample.error], renamed[index])
        yield sample


def _samples(rows: Iterable[Row], config: LinesConfig) -> Iterator[list[Row]]:
    """The rows of each sample, at least one."""
    group: list[Row] = []
    for row in rows:
        if group and not (config.group_rows and len(group) < MOST_ROWS and row.follows(group[-1])):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
