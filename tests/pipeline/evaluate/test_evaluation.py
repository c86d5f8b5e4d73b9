"""AP over phrases: by hand, and against pycocotools."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluate.evaluation import matched_regions
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


def ap_of(queries: list[Query], kind: Literal["box", "mask"] = "box", weights: np.ndarray | None = None) -> float:
    matches = matched_regions(queries, kind)
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
    assert [ap_of([queries[0], queries[0]], kind) for kind in ("box", "mask")] == pytest.approx([1.0, 1.0])


def coco_ap(queries: list[Query], kind: Literal["box", "mask"]) -> float:
    """AP by pycocotools: each query is an image, and there is one category."""
    images = [{"id": number, "height": 64, "width": 64} for number in range(1, len(queries) + 1)]
    things: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for number, query in enumerate(queries, start=1):
        shared = {"image_id": number, "category_id": 1}
        target = query.target
        for box in () if target is None else target.boxes_xywh_px:
            things.append({**shared, "id": len(things) + 1, "iscrowd": 0, "bbox": list(box), "area": box[2] * box[3]})
            if kind == "mask" and target is not None and target.mask is not None:
                things[-1]["segmentation"] = {"size": [64, 64], "counts": target.mask.counts}
                break
        for answer in query.answers:
            mask = {"segmentation": {"size": [64, 64], "counts": answer.mask.counts}}
            shape = {"bbox": list(answer.box_xywh_px)} if kind == "box" else mask
            regions.append({**shared, "score": answer.score, **shape})
    truth = COCO()
    truth.dataset = {"info": {}, "images": images, "annotations": things, "categories": [{"id": 1, "name": "x"}]}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(regions), {"box": "bbox", "mask": "segm"}[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    return float(evaluation.eval["precision"][..., 0, -1].mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_with_equal_weights_it_is_pycocotools_figure(seed: int, kind: Literal["box", "mask"]) -> None:
    queries = random_queries(40, seed)
    found = ap_of(queries, kind)
    assert 0.005 < found < 0.9
    assert found == pytest.approx(coco_ap(queries, kind), abs=1e-12)


def test_a_weight_of_two_is_the_query_twice() -> None:
    queries = random_queries(20, 9)
    weights = np.array([1 + (i % 3 == 0) for i in range(20)], np.float64)
    repeated = [query for query, times in zip(queries, weights, strict=True) for _ in range(int(times))]
    # Equal scores of different queries may stand in another order.
    assert ap_of(queries, weights=weights) == pytest.approx(ap_of(repeated), abs=0.02)


def test_nothing_to_compare() -> None:
    assert matched_regions([query_of(target_of((0.0, 0.0, 4.0, 4.0)))], "box") is None
    assert matched_regions([query_of(None, answer_of((0.0, 0.0, 4.0, 4.0)))], "box") is None
