"""Logistic regression against what it was drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dataset.evaluate.fit import fit_logistic, out_of_fold
from stages.dataset.evaluate.scores import calibration_error


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two features of other scales, one of them without meaning; logit 2 x - 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    features = np.column_stack([100 + 10 * x, rng.normal(size=n)])
    return features, rng.uniform(size=n) < 1 / (1 + np.exp(-(2 * x - 1)))


def test_it_finds_what_the_labels_were_drawn_from() -> None:
    features, right = drawn(20_000)
    fit = fit_logistic(features, right)
    assert fit.weight / fit.scale == pytest.approx([0.2, 0.0], abs=0.01)
    at_average = fit.probability(np.array([[100.0, 0.0]]))
    assert at_average == pytest.approx([1 / (1 + np.e)], abs=0.01)


def test_at_its_optimum_the_hit_rate_is_the_mean_probability() -> None:
    features, right = drawn(500)
    assert fit_logistic(features, right).probability(features).mean() == pytest.approx(right.mean(), abs=1e-6)


def test_a_feature_that_tells_all_keeps_finite_weights() -> None:
    x = np.linspace(-1, 1, 200)[:, None]
    fit = fit_logistic(x, x[:, 0] > 0)
    assert np.isfinite(fit.weight).all()
    assert fit.probability(x)[-1] > 0.95


def test_a_constant_feature_changes_nothing() -> None:
    features, right = drawn(500)
    more = np.column_stack([features, np.full(500, 3.0)])
    assert fit_logistic(more, right).probability(more) == pytest.approx(
        fit_logistic(features, right).probability(features), abs=1e-6
    )


def test_one_kind_of_label_is_refused() -> None:
    with pytest.raises(ValueError, match="both right and wrong"):
        fit_logistic(np.zeros((5, 1)), np.ones(5, np.bool_))


def test_out_of_fold_has_not_seen_the_image() -> None:
    """Labels that are the same within an image and random between: only a leak could know them."""
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(200), 5)
    right = np.repeat(rng.uniform(size=200) < 0.5, 5)
    marks = np.repeat(rng.normal(size=(200, 40)), 5, axis=0)
    seen = fit_logistic(marks, right).probability(marks)
    unseen = out_of_fold(marks, right, images)
    assert ((seen > 0.5) == right).mean() > 0.65
    assert 0.4 < ((unseen > 0.5) == right).mean() < 0.6


def test_out_of_fold_is_calibrated() -> None:
    features, right = drawn(5000)
    probability = out_of_fold(features, right, np.arange(5000))
    assert calibration_error(probability, right, np.ones(5000)) < 0.03
