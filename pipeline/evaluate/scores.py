"""Do scores tell right regions from wrong ones, and do they say how often they are right?

`risk_coverage_area` and `calibration_error` take scores (n,), right (n,) bool and weights (n,), >= 0, which the
bootstrap draws. `coco_matches` is the base of COCO's average precision, and `fit_logistic` makes scores probabilities.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluate.matching import Query
from stages.contract.masks import rle_area_px

Floats = NDArray[np.float64]

BINS: Final = 15
"""Bins of equal width for the calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""

THRESHOLDS: Final = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Scores for which the report says how many regions a filter keeps."""

RECALLS: Final = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""

RIDGE: Final = 1.0
"""Penalty on the squared weights of standardised features. As a prior it has standard deviation 1: weak beside
hundreds of regions, but it keeps weights finite where a feature tells right from wrong without exception."""

FOLDS: Final = 5
"""Parts of the images; each is judged by a fit on the others."""


def risk_coverage_area(scores: Floats, right: NDArray[np.bool_], weights: Floats) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv, NeurIPS 2017): lower is better.

    This is the share of wrong regions among those kept, averaged over how many are kept, in the order of their score.
    Equal scores count as the average of all their orders.
    """
    order = np.argsort(-scores, kind="stable")
    scores, weights = scores[order], weights[order]
    wrong = weights * ~right[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # the last of each run of equal scores
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
    """Expected calibration error: mean distance between score and hit rate over `BINS` bins, 0 .. 1.

    Chance counts as error: with few regions it is never 0, and the resampled intervals of small errors are too high.
    """
    total = weights.sum()
    if total <= 0:
        return float("nan")
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    expected = np.bincount(bins, weights * scores, BINS)
    found = np.bincount(bins, weights * right, BINS)
    return float(np.abs(expected - found).sum() / total)


def filtered(scores: Floats, right: NDArray[np.bool_]) -> list[dict[str, float | None]]:
    """What filters by `THRESHOLDS` keep: the share of all regions, and the share of right ones among those kept.

    None where there are no regions to take a share of.
    """
    lines: list[dict[str, float | None]] = []
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        precision = float(right[kept].mean()) if kept.any() else None
        lines.append({"score": threshold, "kept": float(kept.mean()) if kept.size else None, "precision": precision})
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """pycocotools' matches of regions with true things, from which AP can be computed for any weights.

    Attributes:
        queries: int (d,), the query of each region, best score first.
        right: bool (thresholds, d), IoU .50, .55 .. .95.
        things: int (q,), true things of each query.
        ap: COCOeval's AP over all thresholds.
        ap50: COCOeval's AP at IoU .50.
        ap75: COCOeval's AP at IoU .75.
    """

    queries: NDArray[np.int64]
    right: NDArray[np.bool_]
    things: NDArray[np.int64]
    ap: float
    ap50: float
    ap75: float

    def average_precision(self, weights: Floats) -> float:
        """AP over IoU .50:.95 with a weight >= 0 per query (q,); all ones give `ap`."""
        total = float(weights @ self.things)
        if total <= 0:
            return float("nan")
        each = weights[self.queries]
        hits, misses = np.cumsum(each * self.right, axis=1), np.cumsum(each * ~self.right, axis=1)
        precision = hits / (hits + misses + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best_from_here = np.pad(best_from_here, ((0, 0), (0, 1)))  # no precision beyond the last recall
        at = [np.searchsorted(recall, RECALLS, side="left") for recall in hits / total]
        return float(np.mean([best[places].mean() for best, places in zip(best_from_here, at, strict=True)]))


def coco_matches(queries: Sequence[Query], kind: Literal["bbox", "segm"]) -> Matches | None:
    """Match regions and things by COCO's rules.

    Every query, a phrase in an image, is one COCO image, and there is one category: a region can only be right for its
    own phrase. Absent phrases are COCO images without a thing. One score threshold serves all phrases, so the score
    has to be comparable across them.

    Args:
        queries: All queries.
        kind: "bbox": a thing is a box of the target. "segm": a thing is the target's whole mask.

    Returns:
        The matches, or None without regions or without things.
    """
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
        # COCO's figures by area and with fewer regions would take three quarters of the time.
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
    found = [entry for entry in evaluation.evalImgs if entry is not None]
    scores = np.concatenate([entry["dtScores"] for entry in found])
    right = np.concatenate([entry["dtMatches"] for entry in found], axis=1) > 0
    owner = np.concatenate([np.full(len(entry["dtScores"]), entry["image_id"] - 1) for entry in found])
    order = np.argsort(-scores, kind="mergesort")
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # (thresholds, recalls)
    return Matches(
        queries=owner[order].astype(np.int64),
        right=right[:, order],
        things=np.bincount([thing["image_id"] - 1 for thing in things], minlength=len(images)),
        ap=float(precision.mean()),
        ap50=float(precision[0].mean()),
        ap75=float(precision[5].mean()),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A logistic regression: bias, and weight, mean and scale of each feature (k,)."""

    bias: float
    weight: Floats
    mean: Floats
    scale: Floats

    def probability(self, features: Floats) -> Floats:
        """Features (n, k) -> probabilities (n,), 0 .. 1."""
        total = self.bias + ((features - self.mean) / self.scale) @ self.weight
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(total, -60.0, 60.0))))


def fit_logistic(features: Floats, right: NDArray[np.bool_]) -> Fit:
    """Fit to features (n, k) and right (n,) by Newton's method. Raises ValueError if all are right or all wrong."""
    if right.all() or not right.any():
        raise ValueError("expected both right and wrong regions")
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # What is the same everywhere may differ by the rounding of its mean, and must not count as a difference.
    scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
    x = np.column_stack([np.ones(len(features)), (features - mean) / scale])
    penalty = np.full(x.shape[1], RIDGE)
    penalty[0] = 0.0
    weights = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights, -60.0, 60.0)))
        slope = x.T @ (right - p) - penalty * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return Fit(bias=float(weights[0]), weight=weights[1:], mean=mean, scale=scale)


def out_of_fold(features: Floats, right: NDArray[np.bool_], images: NDArray[np.int64]) -> Floats:
    """The probability (n,) of each region by a fit on the other folds; all regions of an image are in one fold."""
    fold = np.unique(images, return_inverse=True)[1] % FOLDS
    probability = np.empty(len(right))
    for number in range(FOLDS):
        here = fold == number
        if here.any():
            probability[here] = fit_logistic(features[~here], right[~here]).probability(features[here])
    return probability
