from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from stages.contract.errors import InputError
from tests.stages.read.inputs import reader_of, reason, samples_of


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_rows_become_samples(tmp_path: Path) -> None:
    text = 'image,caption,id\na.jpg,"a cat, asleep",k1\nsub/b.jpg,"say ""hi""\nagain",\n'
    for shard_size in (1, 10):
        first, second = samples_of(kind="csv", path=write(tmp_path / "in.csv", text), shard_size=shard_size)
        assert (first.sample_id, first.captions, first.image.file_name) == ("k1", ("a cat, asleep",), "a.jpg")
        assert (second.sample_id, second.captions) == ("in.csv:3", ('say "hi"\nagain',))
        assert second.image.url == str(tmp_path / "sub/b.jpg")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.tsv", "file_name\ttext\na.jpg\ta, b; c\n"),
        ("in.TAB", "filename\ttitle\na.jpg\ta, b; c\n"),
        ("in.csv", "filepath\ttitle\na.jpg\ta, b; c\n"),
        ("in.csv", 'filename;caption\na.jpg;"a, b; c"\n'),
        ("in.tsv", 'image,caption\na.jpg,"a, b; c"\n'),
        ("captions.txt", 'image,caption\na.jpg,"a, b; c"\n'),
    ],
)
def test_the_delimiter_is_the_one_with_which_the_header_names_the_columns(tmp_path: Path, name: str, text: str) -> None:
    for shard_size in (1, 10):
        (sample,) = samples_of(kind="csv", path=write(tmp_path / name, text), shard_size=shard_size)
        assert (sample.image.file_name, sample.captions) == ("a.jpg", ("a, b; c",))


def test_delimiter_option(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "image|caption\na.jpg|a, b\n")
    (sample,) = samples_of(kind="csv", path=path, delimiter="|")
    assert sample.captions == ("a, b",)
    with pytest.raises(InputError, match=r"expected the column 'image' or .*found 'image\|caption'"):
        samples_of(kind="csv", path=path)


def test_places_count_lines_with_quoted_line_ends(tmp_path: Path) -> None:
    text = 'image,caption\n\na.jpg,"x\ny\nz"\n\nb.jpg,x\r\nc.jpg,x'
    for shard_size in (1, 2, 10):
        samples = samples_of(kind="csv", path=write(tmp_path / "in.csv", text), shard_size=shard_size)
        assert [sample.source for sample in samples] == ["in.csv:3", "in.csv:7", "in.csv:8"]


def test_empty_fields_are_null(tmp_path: Path) -> None:
    (sample,) = samples_of(kind="csv", path=write(tmp_path / "in.csv", "image,caption,id\na.jpg,,\n"))
    assert (sample.captions, sample.sample_id, sample.error) == ((), "in.csv:2", None)


def test_a_quote_that_is_never_closed_is_one_bad_row(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,a dog that runs over the grass number {n}\n" for n in range(10_000))
    path = write(tmp_path / "in.csv", 'image,caption\na.jpg,x\nb.jpg,"open\n' + rows)
    samples = samples_of(kind="csv", path=path)
    assert [reason(sample) for sample in samples[:3]] == [None, "bad_row", None]
    assert len(samples) > 7000
    assert samples_of(kind="csv", path=path, shard_size=1) == samples


def test_duplicate_ids(tmp_path: Path) -> None:
    samples = samples_of(kind="csv", path=write(tmp_path / "in.csv", "id,image,caption\n1,a,x\n1,b,y\n"), shard_size=1)
    assert [(sample.sample_id, reason(sample)) for sample in samples] == [("1", None), ("1#in.csv:3", "duplicate_id")]


def test_byte_order_mark_spaces_and_compression(tmp_path: Path) -> None:
    text = "\ufeffimage, caption\na.jpg,x\nb.jpg,y\n".encode()
    for path in (write(tmp_path / "in.csv", text), write(tmp_path / "in.csv.gz", gzip.compress(text))):
        assert [sample.captions for sample in samples_of(kind="csv", path=path, shard_size=1)] == [("x",), ("y",)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a dog\thttp://x/1.jpg\na cat\thttp://x/2.jpg\n", "the first line must name the columns.*'a dog"),
        ("img,caption\na,b\n", "expected the column 'image' or .*found 'img', 'caption'.*input.image"),
        ("image,legend\na,b\n", "expected the column 'caption' or .*input.caption"),
        ("image,caption,image\na,b,c\n", "'image' more than once"),
        (b"image,\xff\n", "the columns"),
    ],
)
def test_wrong_headers_are_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        reader_of(kind="csv", path=write(tmp_path / "in.csv", text)).shards()


def test_configured_columns_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "image,caption,short\na,b,c\n")
    with pytest.raises(InputError, match=r"expected the column 'key'.*input\.id"):
        reader_of(kind="csv", path=path, id="key").shards()
    with pytest.raises(InputError, match="expected the column 'long'"):
        reader_of(kind="csv", path=path, caption=["short", "long"]).shards()
    (sample,) = samples_of(kind="csv", path=path, caption=["short", "caption"], id="short")
    assert (sample.captions, sample.sample_id) == (("c", "b"), "c")
