"""Splits depend on the image's name alone."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phrasebox.pipeline.export.export import ONLY_SPLIT, image_of, parse_splits
from phrasebox.stages.contract.errors import ConfigError
from tests.build.files import read_json
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished


def test_shares_are_kept() -> None:
    splits = parse_splits(" train = 0.8, val=0.15 ,test=0.05")
    assert list(splits) == ["train", "val", "test"]
    counts = Counter(splits.of(f"{number}.jpg") for number in range(20_000))
    for name, share in splits.items():
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.01)


def test_all_rows_of_an_image_are_in_one_split(tmp_path: Path) -> None:
    """An input with a row for each caption, three an image."""
    make = Maker()
    dog = ("a dog", (1, 1, 5, 5), 0, {"score": 0.5})
    rows = [make.record(f"{row}", "a dog", dog, file_name=f"{row // 3}.jpg") for row in range(72)]
    dataset = finished(tmp_path / "dataset", rows)
    out, report = exported("coco", dataset, tmp_path / "coco", split="train=0.5,val=0.5")
    counts: Counter[str] = Counter()
    for split in ("train", "val"):
        images = read_json(out / f"annotations/instances_{split}.json")["images"]
        in_split = Counter(image["file_name"] for image in images)
        assert set(in_split.values()) == {3}
        counts += in_split
    assert counts.total() == report.samples.total() == 72
    assert min(report.samples.values()) >= 15


@given(st.text(max_size=20))
def test_a_sample_stays_where_it_is_when_later_shares_change(sample_id: str) -> None:
    """The first split of 0.9 holds that of 0.5, so that a training set may grow."""
    if parse_splits("train=0.5,val=0.5").of(sample_id) == "train":
        assert parse_splits("train=0.9,val=0.06,test=0.04").of(sample_id) == "train"
    assert parse_splits("").of(sample_id) == ONLY_SPLIT


def test_the_split_of_an_id_is_part_of_the_contract() -> None:
    """It must not change from version to version: samples would wander from val to train."""
    assert image_of({"sample_id": "s1", "file_name": ""}) == "s1"
    splits = parse_splits("train=0.5,val=0.5")
    assert [splits.of(f"s{number}") for number in range(8)] == [
        "val", "val", "train", "train", "val", "train", "train", "train",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "train=half",
        "train=0,val=1",
        "train=0.5,val=0.4",
        "train=0.5,Train=0.5",
        f"{'x' * 65}=1",
    ],
)
def test_what_is_no_split(text: str) -> None:
    with expect_error(ConfigError, key="split"):
        parse_splits(text)
