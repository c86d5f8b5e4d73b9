from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.read import Reader, plan_pieces
from tests.messages import expect_error
from tests.stages.read.inputs import reader_of, tar_sample, write_lines, write_tar


def reader_of_rows(tmp_path: Path, rows: Sequence[Any], **keys: str) -> Reader:
    return reader_of(kind="jsonl", path=str(write_lines(tmp_path / "a.jsonl", rows)), **keys)


def test_an_input_whose_first_images_do_not_exist_is_rejected(tmp_path: Path) -> None:
    """With the folder that was looked in, the first image, and the key to set."""
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    (tmp_path / "pictures" / "sub" / "25.jpg").touch()  # beyond the first
    rows = [{"image": f"sub/{number}.jpg", "caption": "a cat"} for number in range(30)]
    reader = reader_of_rows(tmp_path, rows, image_root=f"{tmp_path}/pictures")
    with expect_error(InputError, key="input.image_root"):
        plan_pieces(reader)
    (tmp_path / "pictures" / "sub" / "19.jpg").touch()
    assert plan_pieces(reader) == reader.pieces()


def test_a_single_image_that_does_not_exist_is_rejected(tmp_path: Path) -> None:
    """Rows with an error of their own do not count."""
    with expect_error(InputError, key="input.image_root"):
        plan_pieces(reader_of_rows(tmp_path, [b"{", {"image": "../x.jpg"}, {"image": "0.jpg"}]))


def test_images_behind_a_url_must_be_there_too(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.jpg", "caption": "a cat"} for number in range(3)]
    reader = reader_of_rows(tmp_path, rows, image_root="memory://forgotten")
    with expect_error(InputError, key="input.image_root"):
        plan_pieces(reader)
    with fsspec.open("memory://forgotten/2.jpg", "wb") as file:
        file.write(b"")
    assert len(plan_pieces(reader)) == 1


def test_an_input_whose_rows_name_no_image_that_may_be_read_is_rejected(tmp_path: Path) -> None:
    rows: list[Any] = [{"image": f"/data/{number}.jpg", "caption": "a cat"} for number in range(10)]
    assert len(plan_pieces(reader_of_rows(tmp_path, rows[1:]))) == 1, "a few bad rows are rows"
    with expect_error(InputError):
        plan_pieces(reader_of_rows(tmp_path, rows))


def test_inputs_that_hold_their_images_are_not_asked_for_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", tar_sample("1"))
    assert len(plan_pieces(reader_of(kind="webdataset", path=str(tmp_path)))) == 1
