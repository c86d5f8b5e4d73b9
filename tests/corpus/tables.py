"""Parquet files and COCO entries of every bad kind, and what their rows must say.

"good" stands for a row that is as it would be alone. A new case is one line in one of the tables.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.goods import good
from tests.corpus.pictures import ANNOTATED, cut, noise, put

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(*rows: dict[str, Any], schema: Any = None, **options: Any) -> bytes:
    """Rows as they are; those of which a column is missing hold null there."""
    types = {"image": IMAGE, "caption": pa.string(), **(schema or {})}
    names = list(dict.fromkeys([name for row in rows for name in row] or types))
    columns = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names}
    sink = pa.BufferOutputStream()
    defaults = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table(columns), sink, **{**defaults, **options})
    return sink.getvalue().to_pybytes()


def sample(number: int, **other: Any) -> dict[str, Any]:
    return {"image": {"bytes": good(number).image, "path": good(number).name}, "caption": good(number).caption, **other}


def between(*rows: dict[str, Any], **options: Any) -> bytes:
    return parquet(sample(0), *rows, sample(1), **options)


def case(outcome: str, row: dict[str, Any]) -> tuple[bytes, list[str]]:
    return between(row), ["good", outcome, "good"]


def of(image: Any, caption: Any = "a red square") -> dict[str, Any]:
    return {"image": image, "caption": caption}


def _not_utf8() -> bytes:
    """The caption of the second of three rows holds bytes that are no text."""
    return between({**sample(2), "caption": "a QQQQ cat"}).replace(b"a QQQQ cat", b"a \xff\xfe\xc0\x80 cat")


def _wrong_pixel() -> bytes:
    """One byte of the second image is another, in a file with checksums."""
    content = parquet(*map(sample, range(3)), row_group_size=1, write_page_checksum=True)
    return put(content, content.index(good(1).image) + 500, b"?")


MANY = parquet(*(sample(number) for number in range(3)), row_group_size=1)
SECOND_IMAGE = MANY.index(good(1).image)
NO_PARQUET = "bad_row: not a Parquet file, or damaged: "
DAMAGED = "bad_row: row group 1 is damaged"
LISTS = (["a cat", "a dog"], [], None, ["a cat", None], [None], ["", " "])

PARQUETS: dict[str, tuple[bytes, list[str]]] = {  # File name -> its bytes, and the outcomes of its rows
    "whole.parquet": (MANY, ["good", "good", "good"]),
    "packed.parquet": (between(sample(2), compression="zstd", use_dictionary=True), ["good", "good", "good"]),
    "empty.parquet": (b"", [NO_PARQUET]),
    "html.parquet": (b"<html>404</html>", [NO_PARQUET]),
    "noise.parquet": (noise(5000), [NO_PARQUET]),
    "cut.parquet": (cut(MANY, 0.7), [NO_PARQUET]),
    "without footer.parquet": (MANY[:-8], [NO_PARQUET]),
    "noise in its footer.parquet": (put(MANY, -300, noise(200)), [NO_PARQUET]),
    "footer longer than the file.parquet": (put(MANY, -8, b"\xff\xff\xff\x7f"), [NO_PARQUET]),
    "zeros over a page header.parquet": (put(MANY, SECOND_IMAGE - 28, b"\0" * 12), ["good", DAMAGED, "good"]),
    "noise over a page header.parquet": (put(MANY, SECOND_IMAGE - 28, noise(12)), ["good", DAMAGED, "good"]),
    "no rows.parquet": (parquet(schema={"x": pa.string()}), []),
    "wrong checksum of a page.parquet": (_wrong_pixel(), ["good", DAMAGED, "good"]),
    "null image.parquet": case("missing_image: the column 'image' is null", of(None)),
    "null bytes and path.parquet": case("missing_image: the column 'image' is null", of({"bytes": None, "path": None})),
    "path alone.parquet": (between(of({"bytes": None, "path": good(2).name}, good(2).caption)), ["good"] * 3),
    "path out of the root.parquet": case(
        "bad_location: leaves the image root", of({"bytes": None, "path": "../../etc/passwd"})
    ),
    "path a URL.parquet": case("bad_location: is a URL", of({"bytes": None, "path": "http://example.org/a.jpg"})),
    "path of bytes out of the root.parquet": case(ANNOTATED, of({"bytes": good(2).image, "path": "../../etc/passwd"})),
    "no bytes.parquet": case("bad_image: the file is empty", of({"bytes": b"", "path": "a.jpg"})),
    "html as bytes.parquet": case("bad_image: a web page was saved", of({"bytes": b"<html>", "path": "a.jpg"})),
    "null caption.parquet": case("no_caption: the sample has no caption", {**sample(2), "caption": None}),
    "captions all null.parquet": (
        parquet({**sample(2), "caption": None}, {**sample(2), "caption": None}),
        ["no_caption: ", "no_caption: "],
    ),
    "caption not UTF-8.parquet": (_not_utf8(), ["good", "bad_caption: holds bytes that are not UTF-8", "good"]),
    "lists of captions.parquet": (
        parquet(*({**sample(2), "caption": texts} for texts in LISTS), schema={"caption": pa.list_(pa.string())}),
        [
            ANNOTATED,
            "no_caption: the sample has no caption",
            "no_caption: the sample has no caption",
            ANNOTATED,
            "no_caption: the sample has no caption",
            "no_caption: all captions are empty",
        ],
    ),
    "ids.parquet": (
        parquet(*(sample(number, sample_id=f"ids.parquet/{letter}") for number, letter in enumerate("aba"))),
        ["good", "good", "duplicate_id: an earlier sample has the id 'ids.parquet/a'"],
    ),
    "null id.parquet": (parquet(sample(0, sample_id="null id.parquet/a"), sample(1, sample_id=None)), ["good", "good"]),
    "empty id.parquet": (
        parquet(sample(0, sample_id="empty id.parquet/a"), sample(1, sample_id="")),
        ["good", "bad_row: 'sample_id' is empty"],
    ),
    "failed downloads.parquet": (
        parquet(sample(0, status="success", key="1"), sample(1, status="failed_to_download", key="2")),
        ["good"],
    ),
    "other columns.parquet": (between(sample(2, deep=[{"a": [1, None]}])), ["good", "good", "good"]),
}

NAME = good(2).name

COCO_IMAGES: dict[str, tuple[Any, list[Any], str]] = {  # Name -> entry of `images`, its captions, outcome
    "whole": ({"id": 1, "file_name": NAME}, ["a red square"], ANNOTATED),
    "no captions": ({"id": 2, "file_name": NAME}, [], "no_caption: the sample has no caption"),
    "id of text": ({"id": "three", "file_name": NAME}, ["a red square"], ANNOTATED),
    "id again": ({"id": 1, "file_name": NAME}, [], "duplicate_id: an earlier sample has the id '1'"),
    "id again as text": ({"id": "2", "file_name": NAME}, [], "duplicate_id: an earlier sample has the id '2'"),
    "no id": ({"file_name": NAME}, [], "bad_row: the image has no id of text or a whole number"),
    "id null": ({"id": None, "file_name": NAME}, [], "bad_row: the image has no id"),
    "id a list": ({"id": [1], "file_name": NAME}, [], "bad_row: the image has no id"),
    "id a fraction": ({"id": 1.5, "file_name": NAME}, [], "bad_row: the image has no id"),
    "id true": ({"id": True, "file_name": NAME}, [], "bad_row: the image has no id"),
    "id negative": ({"id": -4, "file_name": NAME}, ["a red square"], ANNOTATED),
    "id huge": ({"id": 10**30, "file_name": NAME}, ["a red square"], ANNOTATED),
    "no file name": ({"id": 10}, ["a red square"], "bad_row: no image: expected the field 'file_name'"),
    "file name a number": ({"id": 11, "file_name": 11}, ["a red square"], "bad_row: 'file_name' is a number"),
    "file name empty": ({"id": 12, "file_name": ""}, ["a red square"], "bad_row: the image path is empty"),
    "file name above": ({"id": 13, "file_name": "../a.jpg"}, ["a red square"], "bad_location: leaves the image root"),
    "file missing": ({"id": 14, "file_name": "none.jpg"}, ["a red square"], "missing_image: does not exist"),
    "null": (None, [], "bad_row: expected an object"),
    "a list": ([1, 2], [], "bad_row: expected an object"),
    "a text": ("a", [], "bad_row: expected an object"),
    "empty caption": ({"id": 15, "file_name": NAME}, [""], "no_caption: all captions are empty"),
    "lone surrogate": ({"id": 16, "file_name": NAME}, ["a \ud800 cat"], "bad_caption: half of a surrogate pair"),
    "two hundred captions": ({"id": 17, "file_name": NAME}, ["a red square"] * 200, ANNOTATED),
}

COCO_ANNOTATIONS: dict[str, tuple[Any, str]] = {  # Name -> an entry of `annotations` that is a row of its own, outcome
    "of an unknown image": ({"id": 1, "image_id": 999, "caption": "a cat"}, "bad_row: no image has the id '999'"),
    "of no image": ({"id": 2, "caption": "a cat"}, "bad_row: no image has the id 'None'"),
    "of null": ({"id": 3, "image_id": None, "caption": "a cat"}, "bad_row: no image has the id 'None'"),
    "of a list": ({"id": 4, "image_id": [1], "caption": "a cat"}, "bad_row: no image has the id '[1]'"),
    "no caption": ({"id": 5, "image_id": 1}, "bad_caption: the caption is 'null', expected text"),
    "caption a number": ({"id": 6, "image_id": 1, "caption": 5}, "bad_caption: the caption is '5', expected text"),
    "caption a list": ({"id": 7, "image_id": 1, "caption": ["a"]}, "bad_caption: expected text"),
    "no id": ({"image_id": 999, "caption": "a cat"}, "bad_row: no image has the id '999'"),
    "id again": ({"id": 1, "image_id": 998, "caption": "a"}, "duplicate_id: an earlier sample has the id"),
    "null": (None, "bad_row: expected an object"),
    "a number": (5, "bad_row: expected an object"),
}
