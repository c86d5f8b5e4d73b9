"""Correlations of maps."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.alikeness import correlation, disagreement, rank_correlation

RNG = np.random.default_rng(0)
A, B = (RNG.random((5, 7), np.float32) for _ in range(2))


def test_the_correlation_is_numpys() -> None:
    assert correlation(A, B) == pytest.approx(np.corrcoef(A.ravel(), B.ravel())[0, 1])
    assert correlation(A, 3 * A + 2) == pytest.approx(1.0)


def test_ranks_ignore_the_scale_and_share_ties() -> None:
    assert rank_correlation(A, np.exp(9 * A)) == pytest.approx(1.0)
    assert rank_correlation(A, -A) == pytest.approx(-1.0)
    # By hand: ranks 1.5 1.5 3 4 against 1 2 3 4.
    a, b = np.array([[0.0, 0.0, 1.0, 2.0]], np.float32), np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    assert rank_correlation(a, b) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))


def test_a_map_without_differences_is_like_no_other() -> None:
    flat = np.zeros_like(A)
    assert correlation(A, flat) == rank_correlation(flat, flat) == 0.0


def test_maps_of_other_grids_are_brought_to_the_finer_one() -> None:
    y, x = np.mgrid[:8, :8].astype(np.float32)
    coarse = (y + 2 * x).reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert correlation(coarse, y + 2 * x) == correlation(y + 2 * x, coarse) > 0.98


def test_disagreement() -> None:
    assert disagreement([A]) == 0.0
    assert disagreement([A, A, A]) == pytest.approx(0.0)
    assert disagreement([A, -A]) == pytest.approx(2.0)
