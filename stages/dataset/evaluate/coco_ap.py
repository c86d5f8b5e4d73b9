"""COCO's average precision of the regions, by pycocotools.

Every query, a phrase in an image, is one COCO image, and there is one category: a region can only be right for
its own phrase. Absent phrases are COCO images without a thing. One score threshold serves all phrases, so the
score has to be comparable across them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stages.contract.masks import rle_area_px
from stages.dataset.evaluate.matching import Query

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """pycocotools' matches of regions with true things, from which AP can be computed for any weights.

    queries  int (d,), the query of each region, best score first
    right    bool (thresholds, d), IoU .50, .55 .. .95
    things   int (q,), true things of each query
    stats    COCOeval's twelve figures
    """

    queries: NDArray[np.int64]
    right: NDArray[np.bool_]
    things: NDArray[np.int64]
    stats: list[float]

    def average_precision(self, weights: NDArray[np.float64]) -> float:
        """AP over IoU .50:.95 with a weight >= 0 per query (q,); all ones give `stats[0]`."""
        total = float(weights @ self.things)
        if total <= 0:
            return float("nan")
        each = weights[self.queries]
        values = []
        for right in self.right:
            hits, misses = np.cumsum(each * right), np.cumsum(each * ~right)
            recall = hits / total
            precision = hits / (hits + misses + np.spacing(1))
            best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(recall, RECALLS, side="left")
            values.append(np.append(best_from_here, 0.0)[np.minimum(at, recall.size)].mean())
        return float(np.mean(values))


def coco_matches(queries: Sequence[Query], kind: Literal["bbox", "segm"]) -> Matches | None:
    """Match regions and things. With "segm" a thing is the target's whole mask. None if there are no regions."""
    images: list[dict[str, Any]] = []
    things: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for number, query in enumerate(queries, start=1):
        h, w = query.size_hw
        images.append({"id": number, "height": h, "width": w})
        for thing in _things(query, kind):
            things.append({"id": len(things) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, **thing})
        for answer in query.answers:
            region: dict[str, Any] = {"image_id": number, "category_id": 1, "score": answer.score}
            if kind == "bbox":
                region["bbox"] = list(answer.box_xywh_px)
            else:
                region["segmentation"] = {"size": list(answer.mask.size_hw), "counts": answer.mask.counts}
            regions.append(region)
    if not regions or not things:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "annotations": things, "categories": [{"id": 1, "name": "x"}]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(regions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # The first len(imgIds) entries are the first category's without a limit of area.
    found = [entry for entry in evaluation.evalImgs[: len(images)] if entry is not None]
    scores = np.concatenate([entry["dtScores"] for entry in found])
    right = np.concatenate([entry["dtMatches"] for entry in found], axis=1) > 0
    owner = np.concatenate([np.full(len(entry["dtScores"]), entry["image_id"] - 1) for entry in found])
    order = np.argsort(-scores, kind="mergesort")
    return Matches(
        queries=owner[order].astype(np.int64),
        right=right[:, order],
        things=np.bincount([thing["image_id"] - 1 for thing in things], minlength=len(images)),
        stats=[float(value) for value in evaluation.stats],
    )


def _things(query: Query, kind: str) -> list[dict[str, Any]]:
    target = query.target
    if target is None:
        return []
    if kind == "bbox":
        return [{"bbox": list(box), "area": box[2] * box[3]} for box in target.boxes_xywh_px]
    if target.mask is None:
        return []
    coded = {"size": list(target.mask.size_hw), "counts": target.mask.counts}
    return [{"segmentation": coded, "area": rle_area_px(target.mask), "bbox": [0, 0, 1, 1]}]
