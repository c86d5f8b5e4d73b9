"""Which photographs are trained on, and how they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.training.photo.photographs import SETS, read_lists, read_pixels
from stages.contract.errors import InputError
from tests.pipeline.training.photo.conftest import COLOURS


def test_the_last_of_the_first_list_are_held_out(photos: Path) -> None:
    assert [photograph.member for photograph in read_lists(photos, held_out=2)] == [
        f"{number}.png" for number in (0, 1, 2, 3, 6, 7, 8)
    ]


def test_captions_are_lower_case_without_the_full_stop(photos: Path) -> None:
    assert read_lists(photos, held_out=0)[0].captions == ("a red dog on the beach", "a red dog near a man")


def test_pixels_are_rgb_and_squashed(photos: Path) -> None:
    photographs = read_lists(photos, held_out=0)
    images = list(read_pixels(photographs, 32))
    assert [image.shape for image in images] == [(32, 32, 3)] * 9
    blue, green, red = COLOURS["red"]
    assert np.array_equal(images[0][5, 5], [red, green, blue])


def test_what_is_missing_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trained on flickr8k/train\.jsonl and flickr8k/train\.images\.tar"):
        read_lists(tmp_path, held_out=0)
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / SETS[0][0]).write_text(json.dumps({"image": "1.png"}) + "\n", "utf-8")
    with pytest.raises(InputError, match=r"train\.jsonl:1: expected an object with image and captions"):
        read_lists(tmp_path / "copy", held_out=0)
    (tmp_path / "copy" / SETS[0][0]).write_text(json.dumps({"image": "no.png", "captions": ["a dog"]}) + "\n", "utf-8")
    with pytest.raises(InputError, match=r"does not hold no\.png"):
        list(read_pixels(read_lists(tmp_path / "copy", held_out=0), 32))
