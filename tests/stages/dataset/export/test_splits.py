"""Splits depend on the sample's id alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.errors import ConfigError
from stages.dataset.export.splits import ALL, parse_splits


def test_shares_are_kept() -> None:
    splits = parse_splits(" train = 0.8, val=0.15 ,test=0.05")
    assert splits.names == ("train", "val", "test")
    counts = Counter(splits.of(f"sample {number}") for number in range(20_000))
    for name, share in splits.shares.items():
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.01)


@given(st.text(max_size=20))
def test_a_sample_stays_where_it_is_when_later_shares_change(sample_id: str) -> None:
    """The first split of 0.9 holds that of 0.5, so that a training set may grow."""
    if parse_splits("train=0.5,val=0.5").of(sample_id) == "train":
        assert parse_splits("train=0.9,val=0.06,test=0.04").of(sample_id) == "train"
    assert parse_splits("").of(sample_id) == ALL


def test_the_split_of_an_id_is_part_of_the_contract() -> None:
    """It must not change from version to version: samples would wander from val to train."""
    splits = parse_splits("train=0.5,val=0.5")
    assert [splits.of(f"s{number}") for number in range(8)] == [
        "val", "val", "train", "train", "val", "train", "train", "train",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train", "expected NAME=SHARE"),
        ("train=half", "not a number"),
        ("train=nan,val=1", "share above 0"),
        ("train=0,val=1", "share above 0"),
        ("train=-1,val=2", "share above 0"),
        ("train=0.5,val=0.4", "sum to 1, got 0.9"),
        ("train=0.5,train=0.5", "given twice"),
        ("train=0.5,Train=0.5", "only by case"),
        ("../x=1", "cannot be the name"),
        ("a/b=1", "cannot be the name"),
        ("=1", "cannot be the name"),
        (".=1", "cannot be the name"),
        ("tr ain=1", "cannot be the name"),
        ("träin=1", "cannot be the name"),
        (f"{'x' * 65}=1", "cannot be the name"),
    ],
)
def test_what_is_no_split(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_splits(text)
