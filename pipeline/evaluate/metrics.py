"""METRICS: one number for each target. It is 0 for a target that was missed, and None where it is not defined.

Sources: pointing game, Zhang et al., "Top-down Neural Attention by Excitation Backprop" (IJCV 2018), with the
15 px tolerance of TorchRay; energy pointing game, Wang et al., "Score-CAM" (CVPRW 2020); box recall as in
MDETR's evaluation of Flickr30k Entities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.evaluate.matching import LEVELS, ImageHeat, Query
from stages.contract.geometry import Box, box_iou, xywh_to_xyxy, xyxy_to_xywh
from stages.contract.masks import rle_iou, rle_union

TOLERANCE_PX: Final = 15
TOLERANCE_SIDE_PX: Final = 384
"""The tolerance is 15 px in an image whose longer side has 384 px, and grows with the image."""

IOU: Final = 0.5
"""A box is right if its intersection over union is at least this."""

CENTRED_SIDE: Final = 0.8
"""Of the shares from .5 to 1 in steps of .1 the one whose box hits most phrases of 1,000 photographs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number for each query with a target.

    Attributes:
        doc: One line for people.
        value: Computes it.
        needs_maps: Whether it looks at heat maps.
    """

    doc: str
    value: Callable[[Query], float | None]
    needs_maps: bool = False


def pointing(query: Query) -> float | None:
    """1 if the map's highest pixel lies on the true mask, or in a true box where there is no mask.

    The map is the one that regions are cut from: blurred, and guided by the image's colours if `regions.upsample`
    says so.
    """
    return _points_at_truth(query, query.heat)


def pointing_plain(query: Query) -> float | None:
    """As `pointing`, on the map that is only interpolated between its cells, whatever `regions.upsample` says."""
    return _points_at_truth(query, query.plain_heat)


def pointing_tolerant(query: Query) -> float | None:
    """As `pointing`, but the peak may miss by 15 px in an image of 384 px, scaled with the longer side."""
    if query.heat is None:
        return 0.0
    reach = TOLERANCE_PX * max(query.size_hw) / TOLERANCE_SIDE_PX
    if query.target is None or query.target.mask is None:
        return float(any(_distance_px(query.heat.peak, box) <= reach for box in _boxes(query)))
    rows, columns = np.nonzero(query.area.inside)
    y, x = query.heat.peak
    squares = (rows + (query.area.window[0].start - y)) ** 2 + (columns + (query.area.window[1].start - x)) ** 2
    return float(squares.size > 0 and squares.min() <= reach**2)


def pointing_box(query: Query) -> float | None:
    """1 if the map's highest pixel lies in a true box."""
    return 0.0 if query.heat is None else float(_is_in_a_box(query, query.heat.peak))


def energy(query: Query) -> float | None:
    """Share of the map's heat on the true mask, or in the true boxes where there is no mask."""
    if query.heat is None or query.heat.total <= 0:
        return 0.0
    return float(query.heat.px[query.area.window][query.area.inside].sum(dtype=np.float64)) / query.heat.total


def pixel_ap(query: Query) -> float | None:
    """Average precision of the map's pixels as a ranking of the true mask's, over 256 levels of heat."""
    if query.target is None or query.target.mask is None:
        return None
    if query.heat is None or not query.area.inside.any():
        return 0.0
    all_at = query.heat.pixels_per_level[::-1]
    true_at = np.bincount(query.heat.levels[query.area.window][query.area.inside], minlength=LEVELS)[::-1]
    kept, true = np.cumsum(all_at), np.cumsum(true_at)
    precision = np.divide(true, kept, out=np.zeros(LEVELS), where=kept > 0)
    return float((precision * true_at).sum() / true[-1])


def box_recall(query: Query) -> float | None:
    """1 if the best-scored region's box has IoU >= 0.5 with any true box."""
    return float((box_iou_any(query) or 0.0) >= IOU)


def box_recall_merged(query: Query) -> float | None:
    """1 if the best-scored region's box has IoU >= 0.5 with the box around all true boxes."""
    if not query.answers:
        return 0.0
    x0, y0, x1, y1 = zip(*(xywh_to_xyxy(box) for box in _boxes(query)), strict=True)
    merged = xyxy_to_xywh((min(x0), min(y0), max(x1), max(y1)))
    return float(box_iou(query.answers[0].box_xywh_px, merged) >= IOU)


def box_iou_any(query: Query) -> float | None:
    """IoU of the best-scored region's box with its best true box."""
    if not query.answers:
        return 0.0
    return max(box_iou(query.answers[0].box_xywh_px, box) for box in _boxes(query))


def mask_iou(query: Query) -> float | None:
    """IoU of all regions of the phrase together with the true mask."""
    if query.target is None or query.target.mask is None:
        return None
    if not query.answers:
        return 0.0
    return rle_iou(rle_union([answer.mask for answer in query.answers]), query.target.mask)


def pointing_off_centre(query: Query) -> float | None:
    """As `pointing`, for the targets that the image's centre does not lie on: no map wins there by its middle."""
    return None if centre(query) else pointing(query)


def centre(query: Query) -> float | None:
    """Baseline: `pointing` of the image's centre."""
    h, w = query.size_hw
    return float(_is_on_truth(query, (h // 2, w // 2)))


def centred_box(query: Query) -> float | None:
    """Baseline: `box_recall` of a box in the image's middle with `CENTRED_SIDE` of each side."""
    h, w = query.size_hw
    margin = (1 - CENTRED_SIDE) / 2
    middle = (margin * w, margin * h, CENTRED_SIDE * w, CENTRED_SIDE * h)
    return float(any(box_iou(middle, box) >= IOU for box in _boxes(query)))


def chance(query: Query) -> float | None:
    """Baseline: `pointing` of a random pixel, on average."""
    h, w = query.size_hw
    return float(np.count_nonzero(query.area.inside)) / (h * w)


METRICS: Final[dict[str, Metric]] = {
    "pointing": Metric(doc="heat map's peak on the true mask", value=pointing, needs_maps=True),
    "pointing_plain": Metric(doc="the same before colours guide the map", value=pointing_plain, needs_maps=True),
    "pointing_15px": Metric(doc="peak at most 15 px (at 384) away", value=pointing_tolerant, needs_maps=True),
    "pointing_off_centre": Metric(
        doc="the peak, where the centre is not on the mask", value=pointing_off_centre, needs_maps=True
    ),
    "pointing_box": Metric(doc="peak in a true box", value=pointing_box, needs_maps=True),
    "energy": Metric(doc="share of the heat on the true mask", value=energy, needs_maps=True),
    "pixel_ap": Metric(doc="average precision of the heat's pixels", value=pixel_ap, needs_maps=True),
    "box_recall": Metric(doc="best region's box, IoU >= .5 with any true box", value=box_recall),
    "box_recall_merged": Metric(doc="the same with the box around all true boxes", value=box_recall_merged),
    "box_iou": Metric(doc="best region's box with its best true box", value=box_iou_any),
    "mask_iou": Metric(doc="all regions together with the true mask", value=mask_iou),
    "centre": Metric(doc="baseline: pointing at the image's centre", value=centre),
    "centred_box": Metric(doc="baseline: box recall of a box in the middle", value=centred_box),
    "chance": Metric(doc="baseline: pointing at random", value=chance),
}
"""Name -> metric, in the order of the report."""


def correct(query: Query) -> list[bool]:
    """Whether the box of each answer has IoU >= 0.5 with any true box; all are wrong for an absent phrase."""
    boxes = [] if query.target is None else query.target.boxes_xywh_px
    return [any(box_iou(answer.box_xywh_px, box) >= IOU for box in boxes) for answer in query.answers]


def _boxes(query: Query) -> tuple[Box, ...]:
    if query.target is None:
        raise ValueError("metrics are for queries with a target")
    return query.target.boxes_xywh_px


def _points_at_truth(query: Query, heat: ImageHeat | None) -> float:
    return 0.0 if heat is None else float(_is_on_truth(query, heat.peak))


def _is_on_truth(query: Query, pixel: tuple[int, int]) -> bool:
    if query.target is None or query.target.mask is None:
        return _is_in_a_box(query, pixel)
    return query.area.has(pixel)


def _is_in_a_box(query: Query, pixel: tuple[int, int]) -> bool:
    return any(_distance_px(pixel, box) == 0 for box in _boxes(query))


def _distance_px(pixel: tuple[int, int], box_xywh: Box) -> float:
    """From a pixel's centre to a box; 0 inside."""
    y, x = pixel[0] + 0.5, pixel[1] + 0.5
    x0, y0, x1, y1 = xywh_to_xyxy(box_xywh)
    return float(np.hypot(max(x0 - x, 0.0, x - x1), max(y0 - y, 0.0, y - y1)))
