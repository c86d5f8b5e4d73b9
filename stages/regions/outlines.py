"""Outlines by a segmenter (`regions.refine: sam`): the heat says where a thing is, and SAM draws its edge.

stages/README.md says which mask is taken, and when the contour stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import cv2
import numpy as np

from stages.contract.errors import ResourceError, RowFault
from stages.contract.geometry import cell_to_px, xywh_to_xyxy
from stages.contract.masks import mask_box_xywh_px
from stages.contract.records import Sample
from stages.regions.colours import Plane
from stages.regions.config import RegionsConfig
from stages.regions.cut import CutMap, cut_map, pieces_of
from stages.regions.paint import Painted, field_of, paint
from stages.regions.parts import HeatPart, MapToCut, Mask, measure
from stages.regions.score import Evidence, rounded_score
from stages.regions.thresholds import FittedCut, features_of
from stages.shared.images.decode import decode_rgb, load_image_bytes
from stages.shared.images.faults import MAX_PIXELS_CEILING, DecodeLimits
from stages.shared.model.device import in_less_memory
from stages.shared.model.segmenter import Prepared, Prompt, load_segmenter

LEAST_HELD: Final = 0.5  # A mask that holds less of its part's heat is that of something beside the thing

MOST_CHANGE: Final = 10.0
"""A mask whose area is this many times larger or smaller than the contour's is not believed. GrabCut's bound is 3, but
SAM finds the whole of a thing whose heat lies on its head."""

ISLAND: Final = (
    0.1  # Share of a mask's largest connected part below which others are dropped: they would stretch its box
)

SAME: Final = 0.5  # A mask of which a better part has taken more than this lies on the same thing, and is left out

_LIMITS: Final = DecodeLimits(max_pixels=MAX_PIXELS_CEILING)  # The prepare stage has applied the user's

_REASONS: Final = ("not_finite", "empty", "beside", "size")  # Why no mask is taken, in the order of the checks

_log = logging.getLogger(__name__)

Found = list[tuple[Painted, Evidence]]  # The regions of a map, best first

Cut = tuple[MapToCut, CutMap, list[tuple[HeatPart, Painted]]]  # A map, its cut, and the parts with their contours


class Outliner:
    """Draws outlines. Where a GPU's memory does not hold a batch of images, the batch is halved for good.

    The rule `fitted` also says which mask is worth most. Raise as `load_segmenter`, which loads the segmenter here.
    """

    def __init__(self, config: RegionsConfig, fitted: FittedCut | None, device: str) -> None:
        self.segmenter, self.config, self.fitted = load_segmenter(config.sam, device), config, fitted
        self.batch_size = config.sam.batch_size or (8 if self.segmenter.device.type == "cuda" else 1)

    def close(self) -> None:
        """Let the segmenter go."""
        load_segmenter.cache_clear()

    def regions_of(self, drawings: Sequence[tuple[Sample, Mapping[int, MapToCut]]]) -> Iterator[dict[int, Found]]:
        """Yield the regions of the numbered maps of each image, in order.

        Raise ResourceError if a GPU's memory does not hold one image alone.
        """

        def answers(places: Sequence[int]) -> Iterator[dict[int, Found]]:
            for start in range(0, len(places), size := self.batch_size):
                yield from self._batch([drawings[place] for place in places[start : start + size]])

        return (answer for _, answer in in_less_memory(range(len(drawings)), answers, self._take_less))

    def _take_less(self, _: int, why: str) -> None:
        if self.batch_size == 1:
            raise ResourceError(f"the GPU's memory does not hold one image: use a smaller regions.sam.model ({why})")
        self.batch_size //= 2
        _log.warning("GPU memory is full: going on with %d images at a time in the segmenter", self.batch_size)

    def _batch(self, drawings: Sequence[tuple[Sample, Mapping[int, MapToCut]]]) -> Iterator[dict[int, Found]]:
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._prepared, drawings))
        sound = [image for image in images if image is not None]
        encoded = self.segmenter.encode(sound) if sound else {}
        cuts = [{number: self._cut(each) for number, each in maps.items()} for _, maps in drawings]  # meanwhile
        prompts = [
            [self._prompt(cut, *piece) for cut in own.values() for piece in cut[2]]
            for own, image in zip(cuts, images, strict=True)
            if image is not None
        ]
        masks = iter(self.segmenter.masks(encoded, sound, prompts))
        for own, image in zip(cuts, images, strict=True):
            logits = iter([] if image is None else next(masks))
            yield {
                number: self._outlined(cut, image, [next(logits, None) for _ in cut[2]]) for number, cut in own.items()
            }

    def _prepared(self, drawing: tuple[Sample, Mapping[int, MapToCut]]) -> Prepared | None:
        """The image as the segmenter takes it; None if it cannot be read, or nothing is to be drawn in it."""
        sample, maps = drawing
        try:
            return (
                self.segmenter.prepare(decode_rgb(load_image_bytes(sample.image, _LIMITS), _LIMITS)) if maps else None
            )
        except RowFault:
            return None

    def _cut(self, each: MapToCut) -> Cut:
        cut = cut_map(each, self.config, self.fitted) or CutMap(
            fine=np.zeros((1, 1), np.float32), threshold=0.5, parts=[]
        )
        return each, cut, pieces_of(cut, each, self.config)

    def _prompt(self, cut: Cut, part: HeatPart, contour: Painted) -> Prompt:
        each, found, _ = cut
        h, w = part.inside.shape
        heat = np.where(part.inside, found.fine[part.top : part.top + h, part.left : part.left + w], -1.0)
        y, x = divmod(int(heat.argmax()), w)
        places = ((part.left + x, 1), (part.top + y, 0))
        point = tuple(
            cell_to_px(float(place), side_px=each.size_hw[axis], cells=found.fine.shape[axis]) for place, axis in places
        )
        form = self.config.sam.prompt
        return Prompt(
            point_xy_px=None if form == "box" else (point[0], point[1]),
            box_xyxy_px=None if form == "point" else xywh_to_xyxy(contour.box_xywh_px),
        )

    def _outlined(self, cut: Cut, image: Prepared | None, masks: Sequence[Plane | None]) -> Found:
        """The regions of a map. They do not overlap: what a better part has taken stays its own."""
        each, cut_to, pieces = cut
        found: Found = []
        taken: Plane | None = None
        for (part, _), logits in zip(pieces, masks, strict=True):
            chosen = "image" if image is None or logits is None else self._chosen(cut, part, image, logits)
            if isinstance(chosen, str):
                evidence, by, fallback = part.evidence, "none", chosen
                field: Plane = field_of(part, cut_to.fine, cut_to.threshold)
                if taken is not None:
                    field = cv2.resize(field, taken.shape[::-1], interpolation=cv2.INTER_LINEAR)
            else:
                (field, evidence), by, fallback = chosen, "sam", None
                if taken is not None:
                    taken = cv2.resize(taken, field.shape[::-1], interpolation=cv2.INTER_LINEAR)
            free = field if taken is None else np.minimum(field, -taken)
            if np.count_nonzero(free > 0) < SAME * np.count_nonzero(field > 0):
                continue
            painted = paint(free, each.size_hw)
            if painted is not None and painted.area_px >= self.config.min_area_px:
                found.append((replace(painted, refined=by, fallback=fallback), evidence))
                taken = field if taken is None else np.maximum(taken, field)
        return found

    def _chosen(self, cut: Cut, part: HeatPart, image: Prepared, masks: Plane) -> tuple[Plane, Evidence] | str:
        """Return the field of the mask that is worth most, with its evidence, or a word of `_REASONS` if none will do.

        The rule `fitted` knows the worth of a part by its heat, area and box, and by the usual size of such things.
        Without it the worth is the share of all heat in the mask times the contrast of the heat there and outside.
        """
        each, found, _ = cut
        cells = image.cells(masks)
        size_wh = cells.shape[:0:-1]
        heat: Plane = cv2.resize(found.fine, size_wh, interpolation=cv2.INTER_LINEAR)
        own = np.zeros(found.fine.shape, np.uint8)
        own[part.top : part.top + part.inside.shape[0], part.left : part.left + part.inside.shape[1]] = part.inside
        of_part = np.where(cv2.resize(own, size_wh, interpolation=cv2.INTER_NEAREST) > 0, heat, 0)
        total, smallest = float(heat.sum(dtype=np.float64)), self.config.min_area_px / math.prod(each.size_hw)
        best: tuple[float, int, Mask, Evidence] | None = None
        reason = 0
        for number, logits in enumerate(cells):
            kept = _without_islands(logits > 0)
            passed = (
                bool(np.isfinite(logits).all()),
                kept.mean() >= max(self.config.min_area_share, smallest),
                of_part[kept].sum() >= LEAST_HELD * of_part.sum(),
                1 / MOST_CHANGE <= kept.mean() / part.evidence.area <= MOST_CHANGE,
            )
            if not all(passed):
                reason = max(reason, passed.index(False))
                continue
            evidence = measure(heat, kept.view(np.uint8), total, kept.size, found.threshold, each.similarity)
            worth = _worth(evidence, kept, self.fitted, each.usual)
            if best is None or worth > best[0]:
                best = (worth, number, kept, evidence)
        if best is None:
            return _REASONS[reason]
        _, number, kept, evidence = best
        chosen: Plane = masks[number].copy()
        shown = chosen[: kept.shape[0], : kept.shape[1]]
        shown[~kept] = -np.abs(shown[~kept])
        return image.field(chosen), evidence


def _worth(evidence: Evidence, kept: Mask, fitted: FittedCut | None, usual: float) -> float:
    if fitted is None:
        return rounded_score("product", evidence)
    _, _, w, h = mask_box_xywh_px(kept)
    known = (evidence.threshold, evidence.energy, evidence.mean_inside, evidence.mean_outside, evidence.area)
    (worth,) = fitted.worth(features_of(np.array([*known, w * h / kept.size])[:, None], usual)).tolist()
    return float(worth)


def _without_islands(inside: Mask) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inside.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # of what lies outside
    kept: Mask = (areas >= max(1, ISLAND * areas.max()))[labels]
    return kept
