"""Intervals against theory and against images that repeat themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluate.report import Estimate, mean_estimates, weighted_estimate


def mean_estimate(values: np.ndarray, images: np.ndarray, resamples: int = 1000) -> Estimate:
    (found,) = mean_estimates([values], images, resamples)
    return found


def test_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = mean_estimate(values, np.arange(2000))
    reach = 1.96 * values.std() / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach, abs=0.015)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.015)
    assert found.n == 2000


def test_ten_equal_phrases_of_an_image_are_worth_one() -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, 100)
    once = mean_estimate(values, np.arange(100))
    ten = mean_estimate(np.repeat(values, 10), np.repeat(np.arange(100), 10))
    assert (ten.value, ten.low, ten.high) == pytest.approx((once.value, once.low, once.high))
    apart = mean_estimate(np.repeat(values, 10), np.arange(1000))
    assert apart.high - apart.low < 0.5 * (ten.high - ten.low)


def test_any_statistic_and_the_mean_agree() -> None:
    values = np.random.default_rng(3).uniform(size=300)
    images = np.arange(300) // 3
    plain = mean_estimate(values, images, resamples=200)
    weighted = weighted_estimate(lambda w: float(w @ values / w.sum()), images, resamples=200)
    assert (weighted.value, weighted.low, weighted.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_figures_share_their_resamples_and_are_those_of_each_alone() -> None:
    values = np.random.default_rng(4).uniform(size=(3, 60))
    images = np.arange(60) // 4
    assert mean_estimates(list(values), images) == [mean_estimate(each, images) for each in values]


def test_nothing_gives_nan() -> None:
    none = np.empty(0)
    assert math.isnan(mean_estimate(none, none.astype(np.int64)).value)
    assert math.isnan(weighted_estimate(lambda w: 0.0, none.astype(np.int64), 5).low)
