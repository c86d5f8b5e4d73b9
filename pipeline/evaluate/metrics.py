"""METRICS: one number for each target. It is 0 for a target that was missed, and None where it is not defined.

Sources: pointing game, Zhang et al., "Top-down Neural Attention by Excitation Backprop" (IJCV
2018), without a tolerance; energy pointing game, Wang et al., "Score-CAM" (CVPRW 2020); box recall
as in MDETR's evaluation of Flickr30k Entities, ANY-BOX and MERGED-BOX; places from text alone,
`phrasebox.pipeline.evaluate.text_only`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np

from phrasebox.pipeline.evaluate.matching import Query
from phrasebox.pipeline.evaluate.text_only import Extent
from phrasebox.stages.contract.geometry import Box, box_iou, xywh_to_xyxy, xyxy_to_xywh
from phrasebox.stages.contract.masks import rle_iou, rle_union

IOU: Final = 0.5  # a box is right if its intersection over union is at least this
CENTRED_SIDE: Final = (
    0.8  # of 0.5 to 1, in steps of 0.1, the share that hits most phrases of 1,000 photographs
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number for each query with a target: its definition in a line, how to compute it, and if it needs heat maps."""

    doc: str
    value: Callable[[Query], float | None]
    needs_maps: bool = False


def _pointing(query: Query) -> float:
    return 0.0 if query.heat is None else float(query.area[query.heat.peak])


def _pointing_off_centre(query: Query) -> float | None:
    return None if _centre(query) else _pointing(query)


def _energy(query: Query) -> float:
    total = 0.0 if query.heat is None else float(query.heat.px.sum(dtype=np.float64))
    if query.heat is None or total <= 0:
        return 0.0
    return float(query.heat.px[query.area].sum(dtype=np.float64)) / total


BoxAnswer = Callable[[Query, Extent], Sequence[Box] | None]


def _recall_of(boxes: BoxAnswer, extent: Extent) -> Callable[[Query], float | None]:
    """Return a metric: the share of boxes that are right, by any true box or (merged) by the box around all of them."""

    def value(query: Query) -> float | None:
        candidates = boxes(query, extent)
        if candidates is None:
            return None
        true_boxes = query.true_target.boxes_xywh_px
        if extent == "merged":
            x0, y0, x1, y1 = zip(*(xywh_to_xyxy(box) for box in true_boxes), strict=True)
            true_boxes = (xyxy_to_xywh((min(x0), min(y0), max(x1), max(y1))),)
        return fmean(is_right(box, true_boxes) for box in candidates) if candidates else 0.0

    return value


def _usual_box(query: Query, extent: Extent) -> list[Box] | None:
    if query.text_only is None:
        return None
    return [query.text_only.box_of(query.true_target.phrase, *query.size_hw[::-1], extent)]


def _text_point(query: Query) -> float | None:
    if query.text_only is None:
        return None
    x, y = query.text_only.point_of(query.true_target.phrase, *query.size_hw[::-1])
    return float(query.area[(int(y), int(x))])


def _best_box(query: Query, _: Extent) -> list[Box]:
    return [answer.box_xywh_px for answer in query.answers[:1]]


def _middle(query: Query, _: Extent) -> list[Box]:
    h, w = query.size_hw
    margin = (1 - CENTRED_SIDE) / 2
    return [(margin * w, margin * h, CENTRED_SIDE * w, CENTRED_SIDE * h)]


def _box_iou(query: Query) -> float:
    if not query.answers:
        return 0.0
    return max(box_iou(query.answers[0].box_xywh_px, box) for box in query.true_target.boxes_xywh_px)


def _mask_iou(query: Query) -> float | None:
    if query.true_target.mask is None:
        return None
    if not query.answers:
        return 0.0
    return rle_iou(rle_union([answer.mask for answer in query.answers]), query.true_target.mask)


def _centre(query: Query) -> float:
    h, w = query.size_hw
    return float(query.area[(h // 2, w // 2)])


def _chance(query: Query) -> float:
    h, w = query.size_hw
    return float(np.count_nonzero(query.area)) / (h * w)


BOXES: Final[dict[str, tuple[str, BoxAnswer]]] = {
    "box_recall": ("box of the region with the highest score", _best_box),
    "text_box": ("baseline: the usual box of the head noun, without a look at the image", _usual_box),
    "other_box": (
        "baseline: box of the region of another phrase of the image",
        lambda query, _: query.other_boxes,
    ),
    "centred_box": ("baseline: a box in the middle", _middle),
    "whole_image": (
        "baseline: the whole image",
        lambda query, _: [(0.0, 0.0, query.size_hw[1], query.size_hw[0])],
    ),
}
"""Name -> a line for people, and the boxes of an answer; the metric is the mean over these
boxes. Recall by them is MDETR's ANY-BOX, and with "_merged" behind the name MERGED-BOX."""

WITHOUT_TEXT: Final = {
    "pointing": "text_point",
    "pointing_off_centre": "text_point_off_centre",
    "box_recall": "text_box",
    "box_recall_merged": "text_box_merged",
}
"""Metric -> the same metric of an answer from text alone. The report shows the difference as
"NAME_above_text"."""

_RECALLS: Final[tuple[tuple[str, str, Extent], ...]] = (
    ("", "any true box (ANY)", "box"),
    ("_merged", "the box around all true boxes (MERGED)", "merged"),
)

METRICS: Final[dict[str, Metric]] = {
    # The map is the one that regions are cut from; "on the true mask" means in a true box if no mask is known.
    "pointing": Metric("heat map's peak on the true mask", _pointing, needs_maps=True),
    # No map wins there by its middle.
    "pointing_off_centre": Metric(
        "the peak, where the centre is not on the mask", _pointing_off_centre, needs_maps=True
    ),
    "energy": Metric("share of the heat on the true mask", _energy, needs_maps=True),
    **{
        f"{name}{suffix}": Metric(f"{doc}, IoU >= 0.5 with {reference}", _recall_of(boxes, extent))
        for name, (doc, boxes) in BOXES.items()
        for suffix, reference, extent in _RECALLS
    },
    "box_iou": Metric("IoU of the box with the highest score with the nearest true box", _box_iou),
    "mask_iou": Metric("all regions together with the true mask", _mask_iou),
    "centre": Metric("baseline: pointing at the image's centre", _centre),
    "chance": Metric("baseline: pointing at random", _chance),
    "text_point": Metric("baseline: pointing at the usual place of the head noun", _text_point),
    "text_point_off_centre": Metric(
        "the same, where the centre is not on the mask",
        lambda query: None if _centre(query) else _text_point(query),
    ),
}
"""Name -> metric, in the order of the report."""


def value_of(name: str, query: Query) -> float:
    """Return a metric of a query, NaN where it is not defined."""
    value = METRICS[name].value(query)
    return float("nan") if value is None else value


def is_right(box_xywh_px: Box, boxes_xywh_px: Iterable[Box]) -> bool:
    """Return whether a box has IoU >= 0.5 with any true box."""
    return any(box_iou(box_xywh_px, box) >= IOU for box in boxes_xywh_px)


def judge_answers(query: Query) -> list[bool]:
    """Return whether the box of each answer is right; all are wrong for an absent phrase."""
    boxes = [] if query.target is None else query.target.boxes_xywh_px
    return [is_right(answer.box_xywh_px, boxes) for answer in query.answers]
