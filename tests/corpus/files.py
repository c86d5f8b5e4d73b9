"""jsonl and csv files of every bad kind: file name -> its bytes, and what each of its rows must say, in order.

"good" stands for a row that is as it would be alone. A new case is one line in one of the tables.
"""

import bz2
import csv
import gzip
import io
import json
import lzma

from tests.corpus.goods import good
from tests.corpus.pictures import ANNOTATED, cut, put
from tests.stages.read.inputs import zstd


def line(number: int) -> bytes:
    return json.dumps({"image": good(number).name, "caption": good(number).caption}).encode() + b"\n"


TWO = line(0) + line(1)
BROKEN = "bad_row: the compressed file is damaged from here on"

JSONL_FILES: dict[str, tuple[bytes, list[str]]] = {
    "whole.jsonl": (TWO, ["good", "good"]),
    "empty.jsonl": (b"", []),
    "blank lines.jsonl": (b"\n \n" + line(0) + b"\r\n\t\n" + line(1) + b"\n\n", ["good", "good"]),
    "byte order mark.jsonl": (b"\xef\xbb\xbf" + TWO, ["good", "good"]),
    "byte order mark alone.jsonl": (b"\xef\xbb\xbf", []),
    "of Windows.jsonl": (TWO.replace(b"\n", b"\r\n"), ["good", "good"]),
    "of an old Mac.jsonl": (TWO.replace(b"\n", b"\r"), ["bad_row: not JSON: Extra data"]),
    "no line end at its end.jsonl": (TWO[:-1], ["good", "good"]),
    "cut in a line.jsonl": (TWO[:-9], ["good", "bad_row: not JSON: "]),
    "UTF-16.jsonl": (TWO.decode().encode("utf-16"), ["bad_row: UTF-16", "bad_row: ", "bad_row: "]),
    "UTF-16 without mark.jsonl": (line(0).decode().encode("utf-16-le"), ["bad_row: ", "bad_row: "]),
    "pretty.jsonl": (json.dumps([{"image": "a.jpg"}], indent=1).encode(), ["bad_row: "] * 5),
    "one list.jsonl": (json.dumps([{"image": "a.jpg", "caption": "a"}]).encode(), ["bad_row: expected a JSON object"]),
    "zeros at its end.jsonl": (TWO + b"\0" * 5000, ["good", "good", "bad_row: not JSON"]),
    "no line ends.jsonl": (b"x" * 20_000_000, ["bad_row: the line has 20000000 bytes"]),
    "whole.jsonl.gz": (gzip.compress(TWO), ["good", "good"]),
    "empty.jsonl.gz": (gzip.compress(b""), []),
    "no bytes.jsonl.gz": (b"", []),
    "two parts.jsonl.gz": (gzip.compress(line(0)) + gzip.compress(line(1)), ["good", "good"]),
    "not gzip.jsonl.gz": (TWO, [BROKEN]),
    "damaged tail.jsonl.gz": (put(gzip.compress(TWO), -8, b"\0\0\0\0"), ["good", "good", f"{BROKEN}: CRC"]),
    "cut.jsonl.gz": (gzip.compress(TWO)[:-20], ["good", BROKEN]),
    "a bomb.jsonl.gz": (gzip.compress(b"x" * 30_000_000), ["bad_row: the line has 30000000 bytes"]),
    "whole.jsonl.bz2": (bz2.compress(TWO), ["good", "good"]),
    "cut.jsonl.bz2": (cut(bz2.compress(TWO), 0.5), [BROKEN]),
    "whole.jsonl.xz": (lzma.compress(TWO), ["good", "good"]),
    "cut.jsonl.xz": (cut(lzma.compress(TWO), 0.5), [BROKEN]),
    "whole.jsonl.zst": (zstd(TWO), ["good", "good"]),
    "cut.jsonl.zst": (cut(zstd(TWO), 0.5), [BROKEN]),
    "not zstd.jsonl.zst": (TWO, [BROKEN]),
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
    "whole.csv": (between(b""), ["good", "good"]),
    "empty.csv": (b"", []),
    "a header alone.csv": (HEADER, []),
    "byte order mark.csv": (b"\xef\xbb\xbf" + between(b""), ["good", "good"]),
    "of Windows.csv": (between(b"").replace(b"\n", b"\r\n"), ["good", "good"]),
    "no line end at its end.csv": (between(b"")[:-1], ["good", "good"]),
    "blank lines.csv": (between(b"\n\n\r\n"), ["good", "good"]),
    "too few fields.csv": case("bad_row: the row has 1 fields, the header has 2", b"plain.jpg\n"),
    "too many fields.csv": case("bad_row: has 3 fields, the header has 2", b"plain.jpg,a,b\n"),
    "commas alone.csv": case("bad_row: no image", b",\n"),
    "no image.csv": case("bad_row: no image: expected the field 'image'", b",a red square\n"),
    "no caption.csv": case("no_caption: the sample has no caption", b"good 2.jpg,\n"),
    "white space.csv": case("no_caption: all captions are empty", b"good 2.jpg,   \n"),
    "line ends in a field.csv": case(ANNOTATED, b'good 2.jpg,"a red\nsquare\n"\n'),
    "quotes in a field.csv": case(ANNOTATED, b'good 2.jpg,"a ""red"" square"\n'),
    "quotes after a field began.csv": case(ANNOTATED, b'good 2.jpg,a "red" square\n'),
    "a quote not closed.csv": (between(b'good 2.jpg,"a red square\n'), ["good", "bad_row: is a quote open?"]),
    "text after a quote.csv": case("bad_row: expected after", b'good 2.jpg,"a red" square\n'),
    "NUL.csv": case(ANNOTATED, b"good 2.jpg,a red\0 square\n"),
    "Latin-1.csv": case("bad_row: the row is not UTF-8", b"good 2.jpg,a caf\xe9\n"),
    "a field of 200 kB.csv": case("bad_row: is a quote open?", b"good 2.jpg," + b"x" * 200_000 + b"\n"),
    "a carriage return in a field.csv": case(
        "bad_row: new-line character seen in unquoted field", b"good 2.jpg,a red\rsquare\n"
    ),
    "html.csv": case("bad_row: has 3 fields", b"<html>404, not found, sorry</html>\n"),
    "a formula.csv": case("any row", b"good 2.jpg,=1+1\n"),
    "other columns too.csv": (b"image,x,caption\n" + cells(good(0).name, "", good(0).caption), ["good"]),
    "quotes.tsv": (
        b'image\tcaption\ngood 2.jpg\t"a red square\ngood 2.jpg\t"a ""red"" square"\ngood 2.jpg\ta "red" square\n',
        [ANNOTATED],  # rows of the same image make one sample
    ),
    "bars.csv": (b"image|caption\ngood 2.jpg|a red, blue square\n", [ANNOTATED]),
    "tabs.tsv": (
        between(b"").replace(b",", b"\t", 1).replace(b".jpg,", b".jpg\t").replace(b'"', b""),
        ["good", "good"],
    ),
    "whole.csv.gz": (gzip.compress(between(b"")), ["good", "good"]),
    "cut.csv.gz": (gzip.compress(between(b""))[:-20], ["good", BROKEN]),
    "damaged tail.csv.gz": (put(gzip.compress(between(b"")), -8, b"\0\0\0\0"), ["good", "good", BROKEN]),
}
