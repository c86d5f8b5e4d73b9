"""Ranks against cases that can be counted on fingers, and against every order of what is equal."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from pipeline.evaluate.probe.ranks import chance, ranks


def of(similarities: list[float], right: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([similarities], np.float32), np.isin(np.arange(len(similarities)), right)[None]


@pytest.mark.parametrize(
    ("similarities", "right", "hits", "reciprocal"),
    [
        ([0.9, 0.5, 0.1], [0], (1, 1, 1), 1.0),
        ([0.9, 0.5, 0.1], [1], (0, 1, 1), 1 / 2),
        ([0.9, 0.5, 0.1], [2], (0, 0, 1), 1 / 3),
        ([0.9, 0.5, 0.1], [1, 2], (0, 1, 1), 1 / 2),
        ([-0.9, -0.5, -0.1], [0], (0, 0, 1), 1 / 3),
        ([0.5, 0.5, 0.1], [0], (1 / 2, 1, 1), 3 / 4),
        ([0.9, 0.5, 0.5], [2], (0, 1 / 2, 1), (1 / 2 + 1 / 3) / 2),
        ([0.5, 0.5, 0.5], [0, 1], (2 / 3, 1, 1), 2 / 3 + 1 / 3 / 2),
        ([0.5], [0], (1, 1, 1), 1.0),
    ],
)
def test_known_cases(similarities: list[float], right: list[int], hits: tuple[float, ...], reciprocal: float) -> None:
    found = ranks(*of(similarities, right))
    assert [found.hits(k)[0] for k in (1, 2, 3)] == pytest.approx(list(hits))
    assert found.reciprocal()[0] == pytest.approx(reciprocal)


def test_ties_are_the_mean_over_all_orders() -> None:
    values, right = [0.7, 0.5, 0.5, 0.5, 0.5, 0.2], [2, 4, 5]
    firsts = []
    for order in permutations(range(len(values))):
        ranked = sorted(order, key=lambda index: -values[index])  # a stable sort leaves equal ones in this order
        firsts.append(min(place for place, index in enumerate(ranked) if index in right))
    found = ranks(*of(values, right))
    for k in range(1, 7):
        assert found.hits(k)[0] == pytest.approx(np.mean([first < k for first in firsts]))
    assert found.reciprocal()[0] == pytest.approx(np.mean([1 / (first + 1) for first in firsts]))


def test_a_model_that_knows_nothing_scores_chance() -> None:
    """With whatever number of right answers, and wherever they stand."""
    right = np.array([[True, True, False, False, False], [False, False, False, False, True]])
    found = ranks(np.ones((2, 5), np.float32), right)
    assert found.hits(1).tolist() == pytest.approx([chance(2, 5), chance(1, 5)])
