"""CSV and TSV with a header: a row for each image, or for each caption of an image.

    image,caption,id
    kitchen/1.jpg,"a red cup, on a table",k1

Quoted fields of CSV may hold line ends. A quote that is not closed makes the rows after it part
of its field, up to the next quote or 128 KiB: that is one bad row. TSV is read without quoting,
and quotes around a whole field are taken off. Files without a header (CC3M's TSV) are rejected;
the message names the columns that were found.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Literal

from phrasebox.stages.contract.errors import InputError, RowFault
from phrasebox.stages.read.base import COMPRESSION_SUFFIXES, Piece
from phrasebox.stages.read.find import SourceFile
from phrasebox.stages.read.lines import Fields, LinesConfig, TableReader
from phrasebox.stages.read.rows import is_storable, shorten
from phrasebox.stages.read.streams import TO_UTF_8, Line, is_utf_16, iter_lines, open_plain


class CsvInput(LinesConfig):
    """Keys of `input` for `kind: csv`."""

    kind: Literal["csv"] = "csv"


class CsvReader(TableReader):
    """Reads `kind: csv`; the header is line 1."""

    config_type = CsvInput
    suffixes = tuple(f".{kind}{end}" for kind in ("csv", "tsv", "tab") for end in COMPRESSION_SUFFIXES)

    def whole_file(self, file: SourceFile) -> Piece:
        """Return the piece of a file; it carries the delimiter and the columns."""
        piece = super().whole_file(file)
        return replace(piece, payload=json.dumps(self._table(file)).encode())

    def fields(self, piece: Piece) -> Iterator[Fields]:
        """Yield the rows below the header, each with as many fields as the header or with its fault."""
        delimiter, header = json.loads(piece.payload)
        for index, (number, position, fields) in enumerate(_rows(piece, delimiter)):
            if index == 0 and piece.start == 0:
                continue
            row: dict[str, str | None] | RowFault
            if isinstance(fields, RowFault):
                row = fields
            elif len(fields) != len(header):
                row = RowFault(
                    "bad_row",
                    f"the row has {len(fields)} fields, the header has {len(header)}",
                )
            elif not all(map(is_storable, fields)):
                row = RowFault("bad_row", "the row is not UTF-8")
            else:  # with None for empty fields, since CSV has no null
                row = {name: value or None for name, value in zip(header, fields, strict=True)}
            yield number, position, row

    def _table(self, file: SourceFile) -> tuple[str, list[str]]:
        """The delimiter and the columns of the file; an empty file has no columns.

        Raise InputError if the header cannot be read or lacks a needed column, whatever the
        delimiter.
        """
        suffixes = file.url.lower().rpartition("/")[2].split(".")[-2:]
        delimiters = "\t,;|" if {"tsv", "tab"} & set(suffixes) else ",\t;|"
        errors: list[InputError] = []
        for delimiter in delimiters:
            try:
                return delimiter, self._header(file, delimiter)
            except InputError as error:
                errors.append(error)
        raise max(errors, key=lambda error: str(error).count("', '"))  # the one with the most columns

    def _header(self, file: SourceFile, delimiter: str) -> list[str]:
        piece = Piece(url=file.url, name=file.name, first_row=1)
        fields = next((fields for _, _, fields in _rows(piece, delimiter)), [])
        if isinstance(fields, RowFault):
            raise InputError(f"{file.url}: the header cannot be read: {fields.error.detail}")
        if fields and is_utf_16(fields[0].encode("utf-8", "surrogateescape")):
            raise InputError(f"{file.url} is UTF-16; {TO_UTF_8}")
        header = [name.strip() for name in fields]
        duplicates = sorted({name for name in header if header.count(name) > 1})
        if duplicates:
            raise InputError(
                f"{file.url}: the header names {', '.join(map(shorten, duplicates))} more than once"
            )
        if header:
            expected = f"{file.url}: the first line must name the columns: expected the column"
            self.parser.check_header(header, expected)
        return header


def _rows(piece: Piece, delimiter: str) -> Iterator[tuple[int, int, list[str] | RowFault]]:
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

    with open_plain(piece.url) as file:
        lines = texts(iter_lines(file, piece.start, piece.stop, piece.first_row))
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
                problem = str(error).partition(" - ")[0]
                fields = RowFault("bad_row", f"not CSV ({problem}): is a quote open?")
            fault = next((fault for _, _, fault in row if fault is not None), None)
            if isinstance(fields, list) and delimiter == "\t":
                fields = [_unquote(field) for field in fields]
            if fields or fault:
                yield row[0][0], row[0][1], fault or fields


_QUOTED_FIELD: Final = re.compile(r'"((?:[^"]|"")*)"')


def _unquote(field: str) -> str:
    """Remove quotes around a whole field of TSV.

    A reader that allows quotes would join the rows below a caption that begins with one: most
    TSV is written without.
    """
    match = _QUOTED_FIELD.fullmatch(field)
    return field if match is None else match[1].replace('""', '"')
