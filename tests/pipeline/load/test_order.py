from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.load.datasets import cut, place_of_rank, shuffled, stretch
from stages.contract.errors import ConfigError


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_stretches_cover_all_and_are_all_but_equal(start: int, size: int, parts: int) -> None:
    found = [stretch(start, start + size, parts, part) for part in range(parts)]
    assert [position for first, last in found for position in range(first, last)] == list(range(start, start + size))
    assert len({last - first for first, last in found}) <= 2
    assert max(last - first for first, last in found) - min(last - first for first, last in found) <= 1


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 30), st.integers(0, 30))
def test_a_cut_is_a_slice_of_the_sequence_repeated(sizes: list[int], start: int, length: int) -> None:
    once = [(number, row) for number, size in enumerate(sizes) for row in range(size)]
    wanted = [once[position % len(once)] for position in range(start, start + length)] if once else []
    pieces = list(cut(sizes, start, start + length))
    assert [(number, row) for number, first, last in pieces for row in range(first, last)] == wanted


def test_an_order_follows_from_its_seeds() -> None:
    orders = [tuple(shuffled(20, *seeds)) for seeds in ((0, 0), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 7))]
    assert orders[0] == orders[1]
    assert len(set(orders[1:])) == 4 + (orders[0] != orders[4])  # numpy pads seeds with zeros
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_the_place_is_the_given_one_else_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of_rank(None, None) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place_of_rank(None, None) == (2, 4)
    assert place_of_rank(0, 3) == (0, 3)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_places_that_cannot_be(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(ConfigError, match="expected"):
        place_of_rank(rank, world_size)


@pytest.mark.parametrize(("rank", "world_size"), [("x", "2"), ("3", "2"), ("-1", "2")])
def test_an_environment_that_cannot_be(rank: str, world_size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ConfigError, match=r"RANK|rank"):
        place_of_rank(None, None)
