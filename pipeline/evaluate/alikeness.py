"""How alike two heat maps are: of two phrases, of two explainers, before and after weights were shuffled.

`correlation` compares the heat, `rank_correlation` (Spearman) the order of the cells alone, as the sanity checks of
Adebayo et al. (NeurIPS 2018, arXiv 1810.03292) do. A map that is the same everywhere is like no other: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def correlation(a: Values, b: Values) -> float:
    """Pearson's correlation of two maps, -1 .. 1. Maps of different grids are compared on the finer one's."""
    finer = max(a.shape, b.shape, key=lambda shape: shape[0] * shape[1])
    return _pearson(_on_grid(a, finer), _on_grid(b, finer))


def rank_correlation(a: Values, b: Values) -> float:
    """Spearman's correlation of two maps of one shape, -1 .. 1; equal cells share their rank."""
    return _pearson(_ranks(a), _ranks(b))


def disagreement(maps: Sequence[Values]) -> float:
    """How much several maps differ: 1 less their mean correlation in pairs, 0 .. 2; 0 for one map."""
    pairs = [correlation(a, b) for a, b in combinations(maps, 2)]
    return 1.0 - float(np.mean(pairs)) if pairs else 0.0


def _on_grid(values: Values, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if values.shape != shape:
        values = cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return values.astype(np.float64)


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if norm <= np.finfo(np.float64).tiny:
        return 0.0
    return float(np.clip((a * b).sum() / norm, -1.0, 1.0))


def _ranks(values: Values) -> NDArray[np.float64]:
    _, owner, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    ranks: NDArray[np.float64] = (upper - (counts - 1) / 2)[owner]
    return ranks
