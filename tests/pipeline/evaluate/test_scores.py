"""Risk, coverage, calibration, COCO's AP and the fit: by hand, against plain loops, and against what was drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.matching import Query
from pipeline.evaluate.scores import (
    calibration_error,
    coco_matches,
    filtered,
    fit_logistic,
    out_of_fold,
    risk_coverage_area,
)
from tests.pipeline.evaluate.asked import answer_of, query_of, target_of

SIZE = (64, 64)


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
    lines = {line["score"]: (line["kept"], line["precision"]) for line in filtered(scores, right)}
    assert lines[0.5] == pytest.approx((2 / 3, 0.5))
    assert filtered(scores[:1], right[:1])[-1] == {"score": 0.9, "kept": 0.0, "precision": None}
    assert filtered(scores[:0], right[:0])[0] == {"score": 0.0, "kept": None, "precision": None}


def random_queries(count: int, seed: int) -> list[Query]:
    """Boxes near the truth, some far off, some for what is not there."""
    rng = np.random.default_rng(seed)
    queries = []
    for image in range(count):
        boxes = [tuple(float(v) for v in (*rng.integers(0, 32, 2), *rng.integers(8, 24, 2))) for _ in range(2)]
        moved = [(x + rng.integers(0, 6), y + rng.integers(0, 6), w, h) for x, y, w, h in boxes]
        answers = [answer_of(box, float(rng.integers(1, 9)) / 10, SIZE) for box in moved]
        target = target_of(*boxes, size_hw=SIZE) if image % 5 else None
        queries.append(query_of(target, *answers, size_hw=SIZE, image=image))
    return queries


def test_perfect_regions_have_an_ap_of_one() -> None:
    target = target_of((0.0, 0.0, 16.0, 16.0), size_hw=SIZE)
    queries = [query_of(target, answer_of((0.0, 0.0, 16.0, 16.0), size_hw=SIZE), size_hw=SIZE, image=i) for i in (1, 2)]
    for kind in ("bbox", "segm"):
        matches = coco_matches(queries, kind)  # type: ignore[arg-type]
        assert matches is not None
        assert matches.ap == pytest.approx(1.0)


def test_ap_by_hand() -> None:
    """Best score right, second wrong, third right, of three things: precision 1 to recall 1/3, 2/3 to 2/3."""
    here, there = (0.0, 0.0, 16.0, 16.0), (40.0, 40.0, 16.0, 16.0)
    queries = [
        query_of(target_of(here, size_hw=SIZE), answer_of(here, 0.9, SIZE), size_hw=SIZE, image=1),
        query_of(target_of(here, size_hw=SIZE), answer_of(there, 0.8, SIZE), size_hw=SIZE, image=2),
        query_of(target_of(here, size_hw=SIZE), answer_of(here, 0.7, SIZE), size_hw=SIZE, image=3),
    ]
    matches = coco_matches(queries, "bbox")
    assert matches is not None
    # of 101 recalls 0 .. 1 in steps of .01: 34 up to .33, 33 more up to .66
    assert matches.ap == pytest.approx((34 * 1.0 + 33 * 2 / 3) / 101)


@pytest.mark.parametrize("seed", range(5))
def test_with_equal_weights_it_is_pycocotools_figure(seed: int) -> None:
    matches = coco_matches(random_queries(40, seed), "bbox")
    assert matches is not None
    assert 0.05 < matches.ap < 0.9
    assert matches.average_precision(np.ones(40)) == pytest.approx(matches.ap, abs=1e-12)


def test_a_weight_of_two_is_the_query_twice() -> None:
    queries = random_queries(20, 9)
    weights = np.array([1 + (i % 3 == 0) for i in range(20)], np.float64)
    matches = coco_matches(queries, "bbox")
    repeated = [query for query, times in zip(queries, weights, strict=True) for _ in range(int(times))]
    twice = coco_matches(repeated, "bbox")
    assert matches is not None
    assert twice is not None
    # Equal scores of different queries may stand in another order.
    assert matches.average_precision(weights) == pytest.approx(twice.ap, abs=0.02)


def test_nothing_to_compare() -> None:
    assert coco_matches([query_of(target_of((0.0, 0.0, 4.0, 4.0)))], "bbox") is None
    assert coco_matches([query_of(None, answer_of((0.0, 0.0, 4.0, 4.0)))], "bbox") is None


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


def test_what_is_the_same_everywhere_is_no_feature() -> None:
    """The mean of 806 times 0.449... is not that number: its rounding would be the scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=806)
    fit = fit_logistic(np.column_stack([x, np.full(806, 0.449019607843137)]), x + rng.normal(size=806) > 0)
    assert fit.scale[1] == 1.0
    assert abs(fit.weight[1]) < 1e-6
