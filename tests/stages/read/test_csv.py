from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import InputError
from tests.messages import expect_error
from tests.stages.read.inputs import reader_of, reason, samples_of


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_rows_become_samples(tmp_path: Path) -> None:
    """The fields that are empty are null."""
    text = 'image,caption,id\na.jpg,"a cat, asleep",k1\nsub/b.jpg,"say ""hi""\nagain",\nc.jpg,,\n'
    for piece_size in (1, 10):
        first, second, third = samples_of(
            kind="csv", path=write(tmp_path / "in.csv", text), piece_size=piece_size
        )
        assert (third.captions, third.sample_id, third.error) == ((), "in.csv:5", None)
        assert (first.sample_id, first.captions, first.image.file_name) == (
            "k1",
            ("a cat, asleep",),
            "a.jpg",
        )
        assert (second.sample_id, second.captions) == ("in.csv:3", ('say "hi"\nagain',))
        assert second.image.url == str(tmp_path / "sub/b.jpg")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.tsv", "file_name\ttext\na.jpg\ta, b; c\n"),
        ("in.csv", 'filename;caption\na.jpg;"a, b; c"\n'),
        ("in.tsv", 'image,caption\na.jpg,"a, b; c"\n'),
        ("in.csv", '\ufeffimage, caption \na.jpg,"a, b; c"\n'),
    ],
)
def test_the_delimiter_is_the_one_with_which_the_header_names_the_columns(
    tmp_path: Path, name: str, text: str
) -> None:
    for piece_size in (1, 10):
        (sample,) = samples_of(kind="csv", path=write(tmp_path / name, text), piece_size=piece_size)
        assert (sample.image.file_name, sample.captions) == ("a.jpg", ("a, b; c",))


def test_places_count_lines_with_quoted_line_ends(tmp_path: Path) -> None:
    text = 'image,caption\n\na.jpg,"x\ny\nz"\n\nb.jpg,x\r\nc.jpg,x'
    for piece_size in (1, 2, 10):
        samples = samples_of(kind="csv", path=write(tmp_path / "in.csv", text), piece_size=piece_size)
        assert [sample.source for sample in samples] == ["in.csv:3", "in.csv:7", "in.csv:8"]


def test_a_quote_that_is_never_closed_is_one_bad_row(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,{'a dog that runs over the grass ' * 10}number {n}\n" for n in range(1000))
    path = write(tmp_path / "in.csv", 'image,caption\na.jpg,x\nb.jpg,"open\n' + rows)
    samples = samples_of(kind="csv", path=path)
    assert [reason(sample) for sample in samples[:3]] == [None, "bad_row", None]
    assert len(samples) > 500
    assert samples_of(kind="csv", path=path, piece_size=1) == samples


@pytest.mark.parametrize(
    "text",
    [
        "a dog\thttp://x/1.jpg\na cat\thttp://x/2.jpg\n",
        "img,caption\na,b\n",
        "image,caption,image\na,b,c\n",
        b"image,\xff\n",
    ],
)
def test_wrong_headers_are_rejected(tmp_path: Path, text: str | bytes) -> None:
    with expect_error(InputError):
        reader_of(kind="csv", path=write(tmp_path / "in.csv", text)).pieces()


def test_configured_columns_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "image,caption,short\na,b,c\n")
    for keys in ({"id": "key"}, {"caption": ["short", "long"]}):
        with expect_error(InputError):
            reader_of(kind="csv", path=path, **keys).pieces()
    (sample,) = samples_of(kind="csv", path=path, caption=["short", "caption"], id="short")
    assert (sample.captions, sample.sample_id) == (("c", "b"), "c")
