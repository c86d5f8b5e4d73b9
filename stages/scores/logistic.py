"""The logistic regression that makes probabilities of scores and signals, and the area under their ROC curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from phrasebox.stages.contract.values import Bools, Floats

RIDGE: Final = 1.0
"""Penalty on the squared weights of standardised features. As a prior it has standard deviation 1:
weak beside hundreds of regions, but it keeps weights finite where a feature separates right from
wrong without exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticModel:
    """A logistic regression: bias, and weight, mean and scale of each feature (k,)."""

    bias: float
    weight: Floats
    mean: Floats
    scale: Floats

    def probability(self, features: Floats) -> Floats:
        """Return the probabilities (n,), 0 .. 1, of features (n, k)."""
        return _logistic(self.bias + ((features - self.mean) / self.scale) @ self.weight)

    def by_name(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return weight, mean and scale, each by the names of the features."""
        parts = {"weight": self.weight, "mean": self.mean, "scale": self.scale}
        return {part: dict(zip(names, values.tolist(), strict=True)) for part, values in parts.items()}


def fit_logistic(features: Floats, right: Bools | Floats) -> LogisticModel:
    """Fit to features (n, k) and right (n,), or its probability 0 .. 1, by Newton's method.

    Raise ValueError if all are right or all wrong.
    """
    if not 0 < right.mean() < 1:
        raise ValueError("expected both right and wrong regions")
    mean, scale = mean_and_scale(features)
    x = np.column_stack([np.ones(len(features)), (features - mean) / scale])
    weights = most_likely(x, right, np.zeros(x.shape[1]), np.array([0.0, *[RIDGE] * features.shape[1]]))
    return LogisticModel(bias=float(weights[0]), weight=weights[1:], mean=mean, scale=scale)


def most_likely(x: Floats, right: Bools | Floats, prior: Floats, precision: Floats) -> Floats:
    """Return the weights (k,) of features x (n, k) under normal priors, by Newton's method; right is (n,)."""
    weights = np.zeros(x.shape[1])
    for _ in range(100):
        p = _logistic(x @ weights)
        slope = x.T @ (right - p) - precision * (weights - prior)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(precision + 1e-9)
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def mean_and_scale(features: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation (k,) of features (n, k); the latter is 1 for a constant feature."""
    mean = features.mean(axis=0)
    scale = features.std(axis=0)
    # A constant feature may differ by the rounding of its mean, and must not count as a difference.
    return mean, np.where(scale > 1e-9 * np.maximum(1.0, np.abs(mean)), scale, 1.0)


def roc_area(scores: Floats) -> Callable[[Floats, Floats], float]:
    """Return a function to the area under the ROC curve of scores (n,).

    Its arguments are weights (n,), >= 0, of the scores as positive and as negative examples. Equal
    scores count half; the area is NaN where all weights of one kind are 0.

    >>> roc_area(np.array([0.1, 0.4, 0.8]))(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0]))
    1.0
    """
    _, ranks = np.unique(scores, return_inverse=True)

    def area(positive: Floats, negative: Floats) -> float:
        above = np.bincount(ranks, positive)
        below = np.bincount(ranks, negative)
        pairs = above.sum() * below.sum()
        return float(above @ (np.cumsum(below) - below / 2) / pairs) if pairs > 0 else float("nan")

    return area


def _logistic(values: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -60.0, 60.0))))
