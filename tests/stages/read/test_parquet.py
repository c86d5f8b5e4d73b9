from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.read import SkippedRow
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.stages.read.inputs import read_all, reader_of, reason, samples_of

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: Json) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return str(path)


def read(folder: Path, columns: Json, **keys: Any) -> list[Sample]:
    return samples_of(kind="parquet", path=write(folder / "p.parquet", columns), **keys)


def test_hugging_face_form(tmp_path: Path) -> None:
    rows = [
        {"bytes": b"1", "path": "sub/a.jpg"},
        {"bytes": b"2", "path": None},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": b"4", "path": "/home/user/.cache/c.jpg"},
        {"bytes": b"5", "path": "../../d.jpg"},
        {"bytes": None, "path": "../e.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    samples = read(tmp_path, {"image": pa.array(rows, STRUCT), "text": [f"t{n}" for n in range(8)]})
    assert [sample.sample_id for sample in samples] == [f"p.parquet:{n}" for n in range(8)]
    assert [sample.captions for sample in samples] == [(f"t{n}",) for n in range(8)]
    images = [(sample.image.content, sample.image.file_name, reason(sample)) for sample in samples]
    assert images == [
        (b"1", "sub/a.jpg", None),
        (b"2", "p.parquet:1", None),
        (None, "b.jpg", None),
        (b"4", "c.jpg", None),
        (b"5", "p.parquet:4", None),
        (None, "", "bad_location"),
        (None, "", "missing_image"),
        (None, "", "missing_image"),
    ]
    assert samples[2].image.url == str(tmp_path / "b.jpg")


@pytest.mark.parametrize(("encoding", "text"), [("jpg", "txt"), ("png", "caption")])
def test_img2dataset_form(tmp_path: Path, encoding: str, text: str) -> None:
    columns = {
        encoding: pa.array([b"1", None, b"3", None], pa.binary()),
        text: ["a", "b", None, "d"],
        "key": ["0000", "0001", "0002", "0003"],
        "error_message": [None, "404", "x", None],
        "width": [1, None, 1, 1],
        "status": ["success", "failed_to_download", "failed_to_resize", "success"],
    }
    first, *skipped = read_all(kind="parquet", path=write(tmp_path / "00000.parquet", columns))
    assert isinstance(first, Sample)
    assert (first.sample_id, first.image.content, first.captions) == ("00000.parquet/0000", b"1", ("a",))
    assert first.image.file_name == f"0000.{encoding}"
    assert skipped == [SkippedRow(reason="failed_download", source=f"00000.parquet:{n}") for n in (1, 2, 3)]


def test_rows_without_a_status_of_img2dataset_are_not_skipped(tmp_path: Path) -> None:
    samples = read(tmp_path, {"jpg": pa.array([b"1", None], pa.binary()), "caption": ["a", "b"]})
    assert [reason(sample) for sample in samples] == [None, "missing_image"]
    image = pa.array([{"bytes": b"1", "path": "1.jpg"}], STRUCT)
    (sample,) = read(tmp_path, {"image": image, "caption": ["a"], "status": ["published"]})
    assert sample.error is None


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (pa.array([["a", "b"], [], None]), [("a", "b"), (), ()]),
        (pa.array(["a", "b", None]).dictionary_encode(), [("a",), ("b",), ()]),
    ],
)
def test_types_of_captions(tmp_path: Path, captions: pa.Array, expected: list[tuple[str, ...]]) -> None:
    samples = read(tmp_path, {"image_path": ["1.jpg", "2.jpg", "3.jpg"], "captions": captions})
    assert [sample.captions for sample in samples] == expected
    assert samples[0].image.url == str(tmp_path / "1.jpg")


def test_paths_and_configured_columns(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    columns = {
        "picture": ["a.jpg", "http://x/b.jpg", None],
        "short": ["x", None, "z"],
        "long": [["u"], ["v"], []],
        "number": pa.array([5, 6, None], pa.uint64()),
        "image": [1, 2, 3],
    }
    keys = {
        "image": "picture",
        "id": "number",
        "caption": ["long", "short"],
        "image_root": str(tmp_path / "images"),
    }
    samples = read(tmp_path, columns, **keys)
    assert [sample.sample_id for sample in samples] == ["5", "6", "p.parquet:2"]
    assert [sample.captions for sample in samples] == [("u", "x"), ("v",), ("z",)]
    assert [reason(sample) for sample in samples] == [None, "bad_location", "bad_row"]
    assert samples[0].image.url == f"{tmp_path}/images/a.jpg"


def test_text_that_is_not_utf8_harms_no_neighbour(tmp_path: Path) -> None:
    binary = pa.array([b"fine", b"\xff\xfe", b"also fine"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    names = ["1", "2", "3"]
    samples = read(tmp_path, {"image_path": names, "caption": broken, "sample_id": broken})
    assert [reason(sample) for sample in samples] == [None, "bad_row", None]
    assert [sample.sample_id for sample in samples] == ["fine", "p.parquet:1", "also fine"]
    assert [sample.captions for sample in samples] == [("fine",), (), ("also fine",)]
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), broken)
    samples = read(tmp_path, {"image_path": names[:2], "captions": lists})
    assert [reason(sample) for sample in samples] == [None, "bad_caption"]
    paths = pa.StructArray.from_arrays([pa.nulls(3, pa.binary()), broken], fields=list(STRUCT))
    samples = read(tmp_path, {"image": paths, "caption": names})
    assert [reason(sample) for sample in samples] == [None, "bad_row", None]


def test_row_groups_are_joined_up_to_the_piece_size(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", {"image_path": ["x"] * 9, "caption": ["y"] * 9})
    pieces = reader_of(kind="parquet", path=path, piece_size=3).pieces()
    assert [(piece.start, piece.stop, piece.first_row, piece.samples) for piece in pieces] == [
        (0, 2, 0, 4), (2, 4, 4, 4), (4, 5, 8, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ({"a": [1], "caption": ["x"]}, {}),
        ({"image_path": ["x"], "legend": ["x"]}, {}),
        ({"image_path": ["x"], "caption": ["x"]}, {"image": "img"}),
        ({"image_path": ["x"], "caption": ["x"]}, {"caption": ["caption", "b"]}),
        ({"image_path": ["x"], "caption": ["x"], "key": [1.5]}, {"id": "key"}),
    ],
)
def test_wrong_columns_are_rejected(tmp_path: Path, columns: Json, keys: Json) -> None:
    with expect_error(InputError):
        reader_of(kind="parquet", path=write(tmp_path / "p.parquet", columns), **keys).pieces()


def test_columns_named_twice_are_rejected_if_they_are_needed(tmp_path: Path) -> None:
    values = [pa.array(["x"])] * 4
    pq.write_table(pa.table(values, ["image_path", "caption", "other", "other"]), tmp_path / "p.parquet")
    assert len(samples_of(kind="parquet", path=str(tmp_path))) == 1
    pq.write_table(pa.table(values, ["image_path", "caption", "caption", "other"]), tmp_path / "p.parquet")
    with expect_error(InputError):
        reader_of(kind="parquet", path=str(tmp_path)).pieces()


@pytest.mark.parametrize("content", [b"", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.parquet").write_bytes(content)
    with expect_error(InputError):
        reader_of(kind="parquet", path=str(tmp_path)).pieces()
    write(tmp_path / "a.parquet", {"image_path": ["1"], "caption": ["x"], "sample_id": ["k"]})
    good, bad = samples_of(kind="parquet", path=str(tmp_path))
    assert (good.sample_id, reason(good)) == ("k", None)
    assert (bad.sample_id, reason(bad)) == ("b.parquet:footer", "bad_row")


@pytest.mark.parametrize("key", ["../../b", "/etc/b", "http://example.org/b", "a/../../b"])
def test_a_key_is_no_name_outside(key: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": [key], "jpg": [b"x"], "txt": ["a cat"]}), tmp_path / "a.parquet")
    (sample,) = samples_of(kind="parquet", path=str(tmp_path / "a.parquet"))
    assert (reason(sample), sample.image.file_name) == (
        None,
        "a.parquet:0" if key != "/etc/b" else "etc/b.jpg",
    )
