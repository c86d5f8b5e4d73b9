from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract.errors import InputError
from stages.contract.records import stable_key
from stages.read import Piece, Reader, plan_pieces
from stages.read.plan import mark_repeats
from tests.build.files import write_json
from tests.messages import expect_error
from tests.stages.read.inputs import reader_of, tar_sample, write_lines, write_tar


def repeats_of(rows: list[str], *sizes: int) -> list[tuple[int, ...]]:
    """The indices of samples with an earlier sample's id, in pieces of these sizes."""
    pieces = [Piece(url="u", name="n", samples=size) for size in sizes or [len(rows)]]
    return [piece.repeats for piece in mark_repeats(pieces, array("q", map(stable_key, rows)))]


def test_all_but_the_first_of_equal_ids_are_repeats() -> None:
    assert repeats_of(["a", "b"]) == [()]
    assert repeats_of(["a", "b", "a", "a"]) == [(2, 3)]
    assert repeats_of(["a", "a", "b", "c", "a"], 2, 0, 2, 1) == [(1,), (), (), (0,)]


def read_rows_of(tmp_path: Path, kind: str, names: Sequence[str]) -> Reader:
    """A reader of rows that name these images."""
    if kind == "jsonl":
        path = write_lines(tmp_path / "a.jsonl", [{"image": name, "caption": "a cat"} for name in names])
    elif kind == "csv":
        path = write_lines(
            tmp_path / "a.csv", [b"image,caption", *(f"{name},a cat".encode() for name in names)]
        )
    elif kind == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"image": names, "caption": ["a cat"] * len(names)}), path)
    else:
        path = tmp_path / "a.json"
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        write_json(path, {"images": images, "annotations": []})
    return reader_of(kind=kind, path=str(path), image_root=f"{tmp_path}/pictures")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "coco_captions"])
def test_an_input_whose_first_images_do_not_exist_is_rejected(kind: str, tmp_path: Path) -> None:
    """With the folder that was looked in, the first image, and the key to set."""
    (tmp_path / "pictures").mkdir()
    names = [f"sub/{number}.jpg" for number in range(30)]
    (tmp_path / "pictures" / "sub").mkdir()
    (tmp_path / "pictures" / "sub" / "25.jpg").touch()  # beyond the first
    reader = read_rows_of(tmp_path, kind, names)
    with expect_error(InputError):
        plan_pieces(reader)
    (tmp_path / "pictures" / "sub" / "19.jpg").touch()
    assert plan_pieces(reader) == reader.pieces()


def test_a_single_image_that_does_not_exist_is_rejected(tmp_path: Path) -> None:
    """Rows with an error of their own do not count."""
    rows: list[Any] = [b"{", {"image": "../x.jpg"}, {"image": "0.jpg"}]
    write_lines(tmp_path / "a.jsonl", rows)
    with expect_error(InputError):
        plan_pieces(reader_of(kind="jsonl", path=str(tmp_path / "a.jsonl")))


def test_images_behind_a_url_must_be_there_too(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", [{"image": f"{number}.jpg", "caption": "a cat"} for number in range(3)]
    )
    reader = reader_of(kind="jsonl", path=str(path), image_root="memory://forgotten")
    with expect_error(InputError):
        plan_pieces(reader)
    with fsspec.open("memory://forgotten/2.jpg", "wb") as file:
        file.write(b"")
    assert len(plan_pieces(reader)) == 1


def test_an_input_whose_rows_name_no_image_that_may_be_read_is_rejected(tmp_path: Path) -> None:
    rows: list[Any] = [{"image": f"/data/{number}.jpg", "caption": "a cat"} for number in range(10)]
    reader = reader_of(kind="jsonl", path=str(write_lines(tmp_path / "a.jsonl", rows[1:])))
    assert len(plan_pieces(reader)) == 1, "a few bad rows are rows"
    write_lines(tmp_path / "a.jsonl", rows)
    with expect_error(InputError):
        plan_pieces(reader)


def test_inputs_that_hold_their_images_or_bad_rows_alone_are_not_asked_for_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", tar_sample("1"))
    assert len(plan_pieces(reader_of(kind="webdataset", path=str(tmp_path)))) == 1
    pq.write_table(pa.table({"image": [b"1"], "caption": ["a cat"]}), tmp_path / "a.parquet")
    assert len(plan_pieces(reader_of(kind="parquet", path=str(tmp_path)))) == 1
    write_lines(tmp_path / "a.jsonl", [b"{", {"image": "../x.jpg"}])
    assert len(plan_pieces(reader_of(kind="jsonl", path=str(tmp_path)))) == 1
