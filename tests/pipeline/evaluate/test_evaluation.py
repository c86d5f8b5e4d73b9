"""COCO's AP: by hand, and against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.evaluation import coco_matches
from pipeline.evaluate.matching import Query
from tests.pipeline.evaluate.asked import answer_of, query_of, target_of

SIZE = (64, 64)


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
