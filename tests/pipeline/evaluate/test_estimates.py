"""Intervals, risk, coverage, calibration and the fit: by hand, against theory, and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phrasebox.pipeline.evaluate import estimates
from phrasebox.pipeline.evaluate.estimates import (
    RESAMPLES,
    Estimate,
    debiased_calibration_error,
    judge_with_folds,
    mean_estimates,
    measure_thresholds,
    plain_values,
    risk_coverage_area,
    weighted_estimate,
)
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.scores.logistic import fit_logistic, roc_area

KINDS = ("right regions", "wrong regions")


def area(scores: list[float], right: list[bool], weights: list[float] | None = None) -> float:
    many = [1.0] * len(scores) if weights is None else weights
    return risk_coverage_area(np.array(scores), np.array(right, np.bool_))(np.array(many))


def test_area_of_perfect_worst_and_equal_scores() -> None:
    assert area([0.9, 0.8], [True, True]) == 0.0
    assert area([0.9, 0.8], [False, False]) == pytest.approx(1.0)
    assert area([0.5] * 4, [True, False, True, False]) == pytest.approx(0.5)
    # Right first: risk is t / (1 + t) over the second half of the coverage.
    assert area([0.9, 0.1], [True, False]) == pytest.approx((1 - math.log(2)) / 2)
    # Wrong first: risk is 1, then 1 / (1 + t).
    assert area([0.9, 0.1], [False, True]) == pytest.approx((1 + math.log(2)) / 2)
    # Two equal scores, one of them right, behind a right region: risk is t / 2 / (1 + t).
    assert area([0.9, 0.5, 0.5], [True, False, True]) == pytest.approx((1 - math.log(3) / 2) / 3)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_a_weight_is_a_repetition(rows: list[tuple[int, bool, int]]) -> None:
    scores, right, weights = zip(*rows, strict=True)
    if not any(weights):
        assert math.isnan(area(list(scores), list(right), list(weights)))
        return
    repeated = [np.repeat(column, weights).tolist() for column in (scores, right)]
    assert area(list(scores), list(right), list(weights)) == pytest.approx(area(*repeated))


@pytest.mark.parametrize("too_high", [0.0, 0.1])
def test_the_error_is_that_of_the_scores_and_not_of_chance(too_high: float) -> None:
    """Of 400 regions the five of an image are right or wrong together."""
    rng = np.random.default_rng(0)
    images = np.arange(400) % 80
    errors = []
    for _ in range(10):
        scores = np.tile(rng.uniform(0.2, 0.9, 80), 5)
        right = rng.random(80)[images] < scores - too_high
        estimate = debiased_calibration_error(scores, right, images)
        assert estimate.low <= estimate.value <= estimate.high
        errors.append(estimate.value)
    assert np.mean(errors) == pytest.approx(too_high, abs=0.07), "chance alone would give 0.2"


ANSWERS = st.lists(
    st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 30)), min_size=1, max_size=40
)


@given(ANSWERS)
@settings(max_examples=50)
def test_an_interval_holds_its_estimate(answers: list[tuple[int, bool, int]]) -> None:
    """Of few answers, too, where resamples leave some bins empty."""
    scores, right, images = map(np.array, zip(*answers, strict=True))
    estimate = debiased_calibration_error(scores / 20, right, images)
    rounding = 1e-9
    assert 0 <= estimate.low <= estimate.value + rounding
    assert estimate.value <= estimate.high + rounding


def test_a_filter_keeps_what_reaches_the_threshold() -> None:
    scores = np.array([0.2, 0.5, 0.9])
    right = np.array([False, False, True])
    box_shares = np.array([0.1, 0.6, 0.61])
    lines = measure_thresholds(scores, right, np.arange(3), box_shares)
    half = next(line for line in lines if line.score == 0.5)
    assert half.share == pytest.approx(2 / 3)
    assert half.precision == Estimate(value=0.5, low=0.0, high=1.0, n=2)
    sizes = [(half.sizes[name].n, half.sizes[name].value) for name in ("to 60 %", "above 60 %")]
    assert sizes == [(1, 0.0), (1, 1.0)], "an edge is of the smaller"
    nothing = measure_thresholds(scores[:1], right[:1], np.arange(1), box_shares[:1])[-1]
    assert nothing.share == 0.0
    assert plain_values(nothing)["precision"] == {"value": None, "low": None, "high": None, "n": 0}
    nothing = measure_thresholds(scores[:0], right[:0], np.arange(0), box_shares[:0])[0]
    assert nothing.share is None


def test_weights_are_finite_where_a_feature_separates_and_both_kinds_are_needed() -> None:
    x = np.linspace(-1, 1, 200)[:, None]
    fit = fit_logistic(x, x[:, 0] > 0)
    assert np.isfinite(fit.weight).all()
    assert fit.probability(x)[-1] > 0.95
    with pytest.raises(ValueError, match="both right and wrong"):
        fit_logistic(np.zeros((5, 1)), np.ones(5, np.bool_))


def test_out_of_fold_has_not_seen_the_image() -> None:
    """Labels that are the same within an image and random between: only a leak could know them."""
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(200), 5)
    right = np.repeat(rng.uniform(size=200) < 0.5, 5)
    marks = np.repeat(rng.normal(size=(200, 40)), 5, axis=0)
    in_sample = fit_logistic(marks, right).probability(marks)
    out_of_sample = judge_with_folds(marks, right, images, KINDS)
    assert ((in_sample > 0.5) == right).mean() > 0.65
    assert 0.4 < ((out_of_sample > 0.5) == right).mean() < 0.6


@pytest.mark.parametrize(("rare", "word"), [(True, "right"), (False, "wrong")])
def test_one_kind_in_a_single_image_is_too_one_sided_for_folds(rare: bool, word: str) -> None:
    features = np.random.default_rng(0).normal(size=(200, 2))
    images = np.repeat(np.arange(20), 10)
    with pytest.raises(InputError, match=f"in 20 images are too one-sided .* there are no {word} regions"):
        judge_with_folds(features, (images == 3) == rare, images, KINDS)


def test_what_is_the_same_everywhere_is_no_feature() -> None:
    """The mean of 806 times 0.449... is not that number: its rounding would be the scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=806)
    fit = fit_logistic(np.column_stack([x, np.full(806, 0.449019607843137)]), x + rng.normal(size=806) > 0)
    assert fit.scale[1] == 1.0
    assert abs(fit.weight[1]) < 1e-6


def mean_estimate(values: np.ndarray, images: np.ndarray) -> Estimate:
    return mean_estimates([values], images)[0]


def test_interval_of_a_mean_is_that_of_the_normal_law_however_many_phrases_an_image_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimates, "_draws", estimates._draws.__wrapped__)  # all resamples
    assert RESAMPLES >= 2000, "a bound of 200 draws is the fifth of them"
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    estimate = mean_estimate(np.repeat(values, 3), np.repeat(np.arange(2000), 3))
    reach = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - reach, abs=0.015)
    assert estimate.high == pytest.approx(values.mean() + reach, abs=0.015)
    assert estimate.n == 6000


def test_any_statistic_and_the_mean_agree_and_figures_share_their_resamples() -> None:
    nobody = np.empty(0, np.int64)
    assert math.isnan(mean_estimate(np.empty(0), nobody).value)
    assert math.isnan(weighted_estimate(lambda w: 0.0, nobody).low)
    values = np.random.default_rng(3).uniform(size=(3, 300))
    images = np.arange(300) // 3
    for estimate, numbers in zip(mean_estimates(list(values), images), values, strict=True):
        single = weighted_estimate(lambda w, numbers=numbers: float(w @ numbers / w.sum()), images)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
            (single.value, single.low, single.high)
        )


def test_the_roc_area_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 40) / 4
    is_present = rng.random(40) < 0.4
    weights = rng.integers(0, 4, 40)
    above = np.repeat(scores[is_present], weights[is_present])[:, None]
    below = np.repeat(scores[~is_present], weights[~is_present])
    area = roc_area(scores)
    expected = np.mean((above > below) + 0.5 * (above == below))
    assert area(weights * is_present, weights * ~is_present) == pytest.approx(expected)
    assert np.isnan(area(weights * 1.0, np.zeros(40)))
