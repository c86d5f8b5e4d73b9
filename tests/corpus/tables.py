"""Parquet files and COCO entries of every bad kind, and what their rows must say.

"good" stands for a row that is as it would be alone. A new case is one line in one of the tables.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.build.datasets import Json
from tests.corpus.goods import good
from tests.corpus.pictures import cut, put

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(*rows: Json, schema: Any = None, **options: Any) -> bytes:
    """Rows as they are; those of which a column is missing hold null there."""
    types = {"image": IMAGE, "caption": pa.string(), **(schema or {})}
    names = list(dict.fromkeys([name for row in rows for name in row] or types))
    columns = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names}
    sink = pa.BufferOutputStream()
    defaults = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table(columns), sink, **{**defaults, **options})
    return sink.getvalue().to_pybytes()


def sample(number: int, **other: Any) -> Json:
    return {
        "image": {"bytes": good(number).image, "path": good(number).name},
        "caption": good(number).caption,
        **other,
    }


def between(*rows: Json, **options: Any) -> bytes:
    return parquet(sample(0), *rows, sample(1), **options)


def case(outcome: str, row: Json) -> tuple[bytes, list[str]]:
    return between(row), ["good", outcome, "good"]


def of(image: Any, caption: Any = "a red square") -> Json:
    return {"image": image, "caption": caption}


def _wrong_pixel() -> bytes:
    """One byte of the second image is another, in a file with checksums."""
    content = parquet(*map(sample, range(3)), row_group_size=1, write_page_checksum=True)
    return put(content, content.index(good(1).image) + 500, b"?")


MANY = parquet(*(sample(number) for number in range(3)), row_group_size=1)
SECOND_IMAGE = MANY.index(good(1).image)
LISTS = (["a cat", "a dog"], [], None, ["a cat", None], [None], ["", " "])

PARQUETS: dict[str, tuple[bytes, list[str]]] = {  # File name -> its bytes, and the outcomes of its rows
    "whole.parquet": (MANY, ["good", "good", "good"]),
    "cut.parquet": (cut(MANY, 0.7), ["bad_row"]),
    "footer longer than the file.parquet": (put(MANY, -8, b"\xff\xff\xff\x7f"), ["bad_row"]),
    "zeros over a page header.parquet": (
        put(MANY, SECOND_IMAGE - 28, b"\0" * 12),
        ["good", "bad_row", "good"],
    ),
    "no rows.parquet": (parquet(schema={"x": pa.string()}), []),
    "wrong checksum of a page.parquet": (_wrong_pixel(), ["good", "bad_row", "good"]),
    "path a URL.parquet": case("bad_location", of({"bytes": None, "path": "http://example.org/a.jpg"})),
    "html as bytes.parquet": case("bad_image", of({"bytes": b"<html>", "path": "a.jpg"})),
    "null caption.parquet": case("no_caption", {**sample(2), "caption": None}),
    "lists of captions.parquet": (
        parquet(
            *({**sample(2), "caption": texts} for texts in LISTS), schema={"caption": pa.list_(pa.string())}
        ),
        [
            "annotated",
            "no_caption",
            "no_caption",
            "annotated",
            "no_caption",
            "no_caption",
        ],
    ),
    "empty id.parquet": (
        parquet(sample(0, sample_id="empty id.parquet/a"), sample(1, sample_id="")),
        ["good", "bad_row"],
    ),
}

NAME = good(2).name

COCO_IMAGES: dict[str, tuple[Any, list[Any], str]] = {  # Name -> entry of `images`, its captions, outcome
    "whole": ({"id": 1, "file_name": NAME}, ["a red square"], "annotated"),
    "no captions": ({"id": 2, "file_name": NAME}, [], "no_caption"),
    "id again": ({"id": 1, "file_name": NAME}, [], "duplicate_id"),
    "id again, as a text": ({"id": "1", "file_name": NAME}, [], "duplicate_id"),
    "no id": ({"file_name": NAME}, [], "bad_row"),
    "id a fraction": ({"id": 1.5, "file_name": NAME}, [], "bad_row"),
    "no file name": ({"id": 10}, ["a red square"], "bad_row"),
    "file name empty": ({"id": 12, "file_name": ""}, ["a red square"], "bad_row"),
    "file name above": ({"id": 13, "file_name": "../a.jpg"}, ["a red square"], "bad_location"),
    "null": (None, [], "bad_row"),
    "lone surrogate": ({"id": 16, "file_name": NAME}, ["a \ud800 cat"], "bad_caption"),
}

COCO_ANNOTATIONS: dict[
    str, tuple[Any, str]
] = {  # Name -> an entry of `annotations` that is a row of its own, outcome
    "of an unknown image": ({"id": 1, "image_id": 999, "caption": "a cat"}, "bad_row"),
    "no caption": ({"id": 5, "image_id": 1}, "bad_caption"),
    "caption a number": ({"id": 6, "image_id": 1, "caption": 5}, "bad_caption"),
    "id again": ({"id": 1, "image_id": 998, "caption": "a"}, "duplicate_id"),
    "null": (None, "bad_row"),
}
