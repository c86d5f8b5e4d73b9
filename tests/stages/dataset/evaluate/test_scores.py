"""Risk, coverage and calibration by hand, and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.dataset.evaluate.scores import calibration_error, kept_and_precision, risk_coverage_area


def area(scores: list[float], right: list[bool], weights: list[float] | None = None) -> float:
    many = [1.0] * len(scores) if weights is None else weights
    return risk_coverage_area(np.array(scores), np.array(right, np.bool_), np.array(many))


def test_area_of_perfect_worst_and_equal_scores() -> None:
    assert area([0.9, 0.8], [True, True]) == 0.0
    assert area([0.9, 0.8], [False, False]) == pytest.approx(1.0)
    assert area([0.5] * 4, [True, False, True, False]) == pytest.approx(0.5)
    # Right first: risk is t / (1 + t) over the second half of the coverage.
    assert area([0.9, 0.1], [True, False]) == pytest.approx((1 - math.log(2)) / 2)
    # Wrong first: risk is 1, then 1 / (1 + t).
    assert area([0.9, 0.1], [False, True]) == pytest.approx((1 + math.log(2)) / 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_area_is_the_integral_of_the_risk_and_a_weight_is_a_repetition(rows: list[tuple[int, bool, int]]) -> None:
    weights = [float(times) for _, _, times in rows]
    if sum(weights) == 0:
        assert math.isnan(area([s / 5 for s, _, _ in rows], [r for _, r, _ in rows], weights))
        return
    found = area([s / 5 for s, _, _ in rows], [r for _, r, _ in rows], weights)
    repeated = [(s / 5, r) for s, r, times in rows for _ in range(times)]
    assert found == pytest.approx(area([s for s, _ in repeated], [r for _, r in repeated]))
    total, kept, lost = 0.0, 0.0, 0.0
    steps = 400
    for score in sorted({s for s, _ in repeated}, reverse=True):
        here = [r for s, r in repeated if s == score]
        wrong = sum(not r for r in here) / len(here)
        for i in range(len(here) * steps):
            t = (i + 0.5) / steps
            total += (lost + wrong * t) / (kept + t) / steps
        kept, lost = kept + len(here), lost + wrong * len(here)
    assert found == pytest.approx(total / kept, abs=2e-3)


def error(scores: list[float], right: list[bool]) -> float:
    return calibration_error(np.array(scores), np.array(right, np.bool_), np.ones(len(scores)))


def test_calibration_error() -> None:
    assert error([1.0, 1.0], [True, True]) == 0.0
    assert error([1.0, 0.0], [False, True]) == pytest.approx(1.0)
    assert error([0.5] * 4, [True, True, False, False]) == pytest.approx(0.0)
    assert error([0.9] * 10, [True] * 8 + [False] * 2) == pytest.approx(0.1)
    # One bin off by .5 with half of the regions, one exact.
    assert error([0.5, 0.5, 1.0, 1.0], [True, True, True, True]) == pytest.approx(0.25)


def test_a_filter_keeps_what_reaches_the_threshold() -> None:
    scores, right = np.array([0.2, 0.5, 0.9]), np.array([False, False, True])
    assert kept_and_precision(scores, right, 0.5) == pytest.approx((2 / 3, 0.5))
    kept, precision = kept_and_precision(scores, right, 0.95)
    assert kept == 0.0
    assert math.isnan(precision)
