"""jsonl and csv files of every bad kind: file name -> its bytes, and what each of its rows must say, in order.

"good" stands for a row that is as it would be alone. A new case is one line in one of the tables.
"""

import csv
import gzip
import io
import json

from tests.corpus.goods import good
from tests.corpus.pictures import put


def line(number: int) -> bytes:
    return json.dumps({"image": good(number).name, "caption": good(number).caption}).encode() + b"\n"


TWO = line(0) + line(1)

JSONL_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty.jsonl": (b"", []),
    "blank lines.jsonl": (b"\n \n" + line(0) + b"\r\n\t\n" + line(1) + b"\n\n", ["good", "good"]),
    "byte order mark.jsonl": (b"\xef\xbb\xbf" + TWO, ["good", "good"]),
    "of an old Mac.jsonl": (TWO.replace(b"\n", b"\r"), ["bad_row"]),
    "cut in a line.jsonl": (TWO[:-9], ["good", "bad_row"]),
    "UTF-16.jsonl": (TWO.decode().encode("utf-16"), ["bad_row", "bad_row", "bad_row"]),
    "pretty.jsonl": (json.dumps([{"image": "a.jpg"}], indent=1).encode(), ["bad_row"] * 5),
    "one list.jsonl": (json.dumps([{"image": "a.jpg", "caption": "a"}]).encode(), ["bad_row"]),
    "no line ends.jsonl": (b"x" * 20_000_000, ["bad_row"]),
    "whole.jsonl.gz": (gzip.compress(TWO), ["good", "good"]),
    "no bytes.jsonl.gz": (b"", []),
    "two parts.jsonl.gz": (gzip.compress(line(0)) + gzip.compress(line(1)), ["good", "good"]),
    "not gzip.jsonl.gz": (TWO, ["bad_row"]),
    "damaged tail.jsonl.gz": (put(gzip.compress(TWO), -8, b"\0\0\0\0"), ["good", "good", "bad_row"]),
    "a bomb.jsonl.gz": (gzip.compress(b"x" * 30_000_000), ["bad_row"]),
}

HEADER = b"image,caption\n"


def cells(*values: str) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(values)
    return stream.getvalue().encode()


def row(number: int) -> bytes:
    return cells(good(number).name, good(number).caption)


def between(content: bytes) -> bytes:
    return HEADER + row(0) + content + row(1)


def case(outcome: str, content: bytes) -> tuple[bytes, list[str]]:
    return between(content), ["good", outcome, "good"]


CSV_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty.csv": (b"", []),
    "a header alone.csv": (HEADER, []),
    "byte order mark.csv": (b"\xef\xbb\xbf" + between(b""), ["good", "good"]),
    "blank lines.csv": (between(b"\n\n\r\n"), ["good", "good"]),
    "too few fields.csv": case("bad_row", b"plain.jpg\n"),
    "too many fields.csv": case("bad_row", b"plain.jpg,a,b\n"),
    "no image.csv": case("bad_row", b",a red square\n"),
    "no caption.csv": case("no_caption", b"good 2.jpg,\n"),
    "quotes after a field began.csv": case("annotated", b'good 2.jpg,a "red" square\n'),
    "text after a quote.csv": case("bad_row", b'good 2.jpg,"a red" square\n'),
    "NUL.csv": case("annotated", b"good 2.jpg,a red\0 square\n"),
    "Latin-1.csv": case("bad_row", b"good 2.jpg,a caf\xe9\n"),
    "a field of 200 kB.csv": case("bad_row", b"good 2.jpg," + b"x" * 200_000 + b"\n"),
    "a carriage return in a field.csv": case("bad_row", b"good 2.jpg,a red\rsquare\n"),
    "quotes.tsv": (
        b'image\tcaption\ngood 2.jpg\t"a red square\ngood 2.jpg\t"a ""red"" square"\ngood 2.jpg\ta "red" square\n',
        ["annotated"],  # rows of the same image make one sample
    ),
    "bars.csv": (b"image|caption\ngood 2.jpg|a red, blue square\n", ["annotated"]),
    "damaged tail.csv.gz": (put(gzip.compress(between(b"")), -8, b"\0\0\0\0"), ["good", "good", "bad_row"]),
}
