"""CSV and TSV with a header: a row for each image, or for each caption of an image.

    image,caption,id
    kitchen/1.jpg,"a red cup, on a table",k1

Quoted fields of CSV may hold line ends. A quote that is not closed makes the rows after it part of its field, up to the
next quote or 128 KiB: that is one bad row. TSV is read without quoting, and quotes around a whole field are taken off.
Files without a header (CC3M's TSV) are rejected; the message names the columns that were found.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Final, Literal

from pydantic import Field

from stages.contract.errors import InputError, RowFault
from stages.contract.records import Sample
from stages.read.base import COMPRESSION_SUFFIXES, Reader, Shard, SkippedRow
from stages.read.find import SourceFile, find_files
from stages.read.plan import LinesConfig, Row, plan_lines, samples
from stages.read.rows import RowParser, is_storable, shorten
from stages.read.streams import TO_UTF_8, Line, is_utf_16, iter_lines, open_plain


class CsvInput(LinesConfig):
    """Keys of `input` for `kind: csv`."""

    kind: Literal["csv"] = "csv"
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="Mark between fields; by default the one of comma, tab and semicolon with which the header names "
        "the columns.",
    )


_EXPLANATIONS: Final = {
    "field larger than field limit": f"more than {csv.field_size_limit()} characters in a field: is a quote open?",
    "unexpected end of data": "the last row ends within quotes: is a quote open?",
    "new-line character seen in unquoted field": "a carriage return stands in a field without quotes",
}  # Message of the csv module -> the same for people


class CsvReader(Reader):
    """Reads `kind: csv`. Rows without an id get "FILE:LINE"; the header is line 1."""

    config_type: ClassVar = CsvInput
    suffixes: ClassVar = tuple(f".{kind}{end}" for kind in ("csv", "tsv", "tab") for end in COMPRESSION_SUFFIXES)

    def __init__(self, config: CsvInput) -> None:
        self.config = config
        self.rows = RowParser.of(config)

    def shards(self) -> list[Shard]:
        """Plan the input; the shards carry the delimiter and the columns of their file."""
        files = find_files(self.config.path, self.suffixes)
        self.rows.check_image_root()
        tables = {file.url: self._table(file) for file in files}
        whole_files = {file.url: Shard(url=file.url, name=file.name, first_row=1) for file in files}
        shards = plan_lines(files, lambda file: self._data_rows(whole_files[file.url], *tables[file.url]), self.config)
        return [replace(shard, payload=json.dumps(tables[shard.url]).encode()) for shard in shards]

    def read(self, shard: Shard) -> Iterator[Sample | SkippedRow]:
        """Yield the samples of a shard."""
        return samples(self._data_rows(shard, *json.loads(shard.payload)), self.config, shard)

    def _table(self, file: SourceFile) -> tuple[str, list[str]]:
        """The delimiter and the columns of the file; an empty file has no columns.

        Raise InputError if the header cannot be read or lacks a needed column, whatever the delimiter.
        """
        suffixes = file.url.lower().rpartition("/")[2].split(".")[-2:]
        default = "\t" if {"tsv", "tab"} & set(suffixes) else ","
        delimiters = self.config.delimiter or default + ",\t;|".replace(default, "")
        errors: list[InputError] = []
        for delimiter in delimiters:
            try:
                return delimiter, self._header(file, delimiter)
            except InputError as error:
                errors.append(error)
        raise max(errors, key=lambda error: str(error).count("', '"))  # the one with the most columns

    def _header(self, file: SourceFile, delimiter: str) -> list[str]:
        shard = Shard(url=file.url, name=file.name, first_row=1)
        fields = next((fields for _, _, fields in _rows(shard, delimiter)), [])
        if isinstance(fields, RowFault):
            raise InputError(f"{file.url}: the header cannot be read: {fields.error.detail}")
        if fields and is_utf_16(fields[0].encode("utf-8", "surrogateescape")):
            raise InputError(f"{file.url} is UTF-16; {TO_UTF_8}")
        header = [name.strip() for name in fields]
        duplicates = sorted({name for name in header if header.count(name) > 1})
        if duplicates:
            raise InputError(f"{file.url}: the header names {', '.join(map(shorten, duplicates))} more than once")
        if header:
            expected = f"{file.url}: the first line must name the columns: expected the column"
            self.rows.check_columns(header, expected, all_configured=True)
        return header

    def _data_rows(self, shard: Shard, delimiter: str, header: list[str]) -> Iterator[Row]:
        """The rows below the header, each with as many fields as the header or with its fault."""
        for index, (number, position, fields) in enumerate(_rows(shard, delimiter)):
            if index == 0 and shard.start == 0:
                continue
            row: dict[str, str | None] | RowFault
            if isinstance(fields, RowFault):
                row = fields
            elif len(fields) != len(header):
                row = RowFault("bad_row", f"the row has {len(fields)} fields, the header has {len(header)}")
            elif not all(map(is_storable, fields)):
                row = RowFault("bad_row", "the row is not UTF-8")
            else:  # with None for empty fields, since CSV has no null
                row = {name: value or None for name, value in zip(header, fields, strict=True)}
            yield Row.of(number, position, row, shard, self.rows)


def _rows(shard: Shard, delimiter: str) -> Iterator[tuple[int, int, list[str] | RowFault]]:
    """Number of each row's first line, its first byte, and its fields or its fault."""
    row: list[tuple[int, int, RowFault | None]] = []  # number, first byte and fault of its lines

    def texts(lines: Iterator[Line]) -> Iterator[str]:
        for number, position, content in lines:
            if isinstance(content, RowFault):
                row.append((number, position, content))
                yield "\n"
            else:  # Bytes that are not UTF-8 become lone surrogates, so that only their own row is affected.
                row.append((number, position, None))
                text = content.decode("utf-8", "surrogateescape")
                yield (text.removeprefix("\ufeff") if position == 0 else text) + "\n"

    with open_plain(shard.url) as file:
        lines = texts(iter_lines(file, shard.start, shard.stop, shard.first_row))
        quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            row.clear()
            fields: list[str] | RowFault
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                meaning = next((meaning for part, meaning in _EXPLANATIONS.items() if part in str(error)), error)
                fields = RowFault("bad_row", f"not CSV: {meaning}")
            fault = next((fault for _, _, fault in row if fault is not None), None)
            if isinstance(fields, list) and delimiter == "\t":
                fields = [_unquote(field) for field in fields]
            if fields or fault:
                yield row[0][0], row[0][1], fault or fields


_QUOTED_FIELD: Final = re.compile(r'"((?:[^"]|"")*)"')


def _unquote(field: str) -> str:
    """Remove quotes around a whole field of TSV.

    A reader that allows quotes would join the rows below a caption that begins with one: most TSV is written without.
    """
    match = _QUOTED_FIELD.fullmatch(field)
    return field if match is None else match[1].replace('""', '"')
