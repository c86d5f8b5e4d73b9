"""COCO's AP: by hand, and against pycocotools."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

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


def ap_of(queries: list[Query], kind: Literal["bbox", "segm"] = "bbox", weights: np.ndarray | None = None) -> float:
    matches = coco_matches(queries, kind)
    assert matches is not None
    return matches.average_precision(np.ones(len(queries)) if weights is None else weights)


def test_ap_by_hand() -> None:
    """Best score right, second wrong, third right, of three things: precision 1 to recall 1/3, 2/3 to 2/3."""
    here, there = (0.0, 0.0, 16.0, 16.0), (40.0, 40.0, 16.0, 16.0)
    answers = [answer_of(here, 0.9, SIZE), answer_of(there, 0.8, SIZE), answer_of(here, 0.7, SIZE)]
    thing = target_of(here, size_hw=SIZE)
    queries = [query_of(thing, answer, size_hw=SIZE, image=number) for number, answer in enumerate(answers)]
    # of 101 recalls 0 .. 1 in steps of 0.01: 34 up to 0.33, 33 more up to 0.66
    assert ap_of(queries) == pytest.approx((34 * 1.0 + 33 * 2 / 3) / 101)
    assert [ap_of([queries[0], queries[0]], kind) for kind in ("bbox", "segm")] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("seed", range(5))
def test_with_equal_weights_it_is_pycocotools_figure(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCOeval matches; here it also accumulates."""
    evaluations: list[COCOeval] = []
    evaluate = COCOeval.evaluate
    monkeypatch.setattr(COCOeval, "evaluate", lambda self: (evaluations.append(self), evaluate(self)))
    found = ap_of(random_queries(40, seed))
    (evaluation,) = evaluations
    evaluation.accumulate()
    assert 0.05 < found < 0.9
    assert found == pytest.approx(evaluation.eval["precision"].mean(), abs=1e-12)


def test_a_weight_of_two_is_the_query_twice() -> None:
    queries = random_queries(20, 9)
    weights = np.array([1 + (i % 3 == 0) for i in range(20)], np.float64)
    repeated = [query for query, times in zip(queries, weights, strict=True) for _ in range(int(times))]
    # Equal scores of different queries may stand in another order.
    assert ap_of(queries, weights=weights) == pytest.approx(ap_of(repeated), abs=0.02)


def test_nothing_to_compare() -> None:
    assert coco_matches([query_of(target_of((0.0, 0.0, 4.0, 4.0)))], "bbox") is None
    assert coco_matches([query_of(None, answer_of((0.0, 0.0, 4.0, 4.0)))], "bbox") is None
