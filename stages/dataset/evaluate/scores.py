"""Do scores tell right regions from wrong ones, and do they say how often they are right?

Everything takes scores (n,), right (n,) bool and weights (n,), >= 0, which the bootstrap draws.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS: Final = 15
"""Equal-width bins of the calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""

THRESHOLDS: Final = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Scores at which the report says what a filter keeps."""


def risk_coverage_area(scores: Floats, right: NDArray[np.bool_], weights: Floats) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv, NeurIPS 2017): lower is better.

    The mean over coverages of the share of wrong regions among those kept, kept in the order of their score.
    Equal scores have the average of all orders among them.
    """
    order = np.argsort(-scores, kind="stable")
    scores, weights = scores[order], weights[order]
    wrong = weights * ~right[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # last of each run of equal scores
    kept = np.cumsum(weights)[ends]
    lost = np.cumsum(wrong)[ends]
    total = kept[-1]
    if total <= 0:
        return float("nan")
    kept_before, lost_before = np.append(0.0, kept[:-1]), np.append(0.0, lost[:-1])
    width = kept - kept_before
    used = width > 0
    k0, w0, width = kept_before[used], lost_before[used], width[used]
    rate = (lost[used] - w0) / width
    # integral of (w0 + rate * t) / (k0 + t) over t in 0 .. width
    log = np.log1p(width / np.where(k0 > 0, k0, 1.0))
    inner = np.where(k0 > 0, rate * width + (w0 - rate * k0) * log, rate * width)
    return float(inner.sum() / total)


def calibration_error(scores: Floats, right: NDArray[np.bool_], weights: Floats) -> float:
    """Expected calibration error: mean distance of score and hit rate over `BINS` bins, 0 .. 1.

    Chance counts as error: with few regions it is never 0, and resampled intervals of small errors lie high.
    """
    total = weights.sum()
    if total <= 0:
        return float("nan")
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    told = np.bincount(bins, weights * scores, BINS)
    seen = np.bincount(bins, weights * right, BINS)
    return float(np.abs(told - seen).sum() / total)


def kept_and_precision(scores: Floats, right: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    """Share of the regions with at least this score, and the share of right ones among them (NaN if none)."""
    kept = scores >= threshold
    return float(kept.mean()), float(right[kept].mean()) if kept.any() else float("nan")
