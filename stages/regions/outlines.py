"""Outlines by a segmenter (`regions.refine: sam`): the heat says where an object is, and SAM draws its edge.

docs/explanation/how-it-works.md says which mask is taken, and when the contour stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import itemgetter
from typing import Final, NamedTuple

import cv2
import numpy as np

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.contract.geometry import cell_to_px, xywh_to_xyxy
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.contract.values import Plane
from phrasebox.stages.images.decode import decode_rgb, load_image_bytes
from phrasebox.stages.images.faults import MAX_PIXELS_CEILING, DecodeLimits
from phrasebox.stages.model.device import Batches
from phrasebox.stages.model.segmenter import EncoderInput, Prompt, load_segmenter
from phrasebox.stages.regions.contours import MapRegions, contours_of
from phrasebox.stages.regions.cut import CutMap, Cutter
from phrasebox.stages.regions.paint import RegionMask, field_of, paint
from phrasebox.stages.regions.parts import HeatPart, Mask, ObjectMap, measure
from phrasebox.stages.scores.score import Evidence

LEAST_HEAT: Final = 0.5  # Least share of its part's heat in a mask; with less, it lies beside the object

MOST_CHANGE: Final = 10.0
"""Most times that a mask may be larger or smaller than the contour; else it is wrong. GrabCut's
bound is 3, but SAM finds a whole object from heat on its head alone."""

ISLAND: Final = 0.1
"""Share of a mask's largest connected part below which other parts are dropped: they would
stretch its box."""

SAME: Final = 0.5
"""Largest share of a mask that better parts may cover; with more, it lies on the same object and
is left out."""

_LIMITS: Final = DecodeLimits(max_pixels=MAX_PIXELS_CEILING)  # The prepare stage has applied the user's

_REASONS: Final = (
    "not_finite",
    "empty",
    "beside",
    "size",
)  # Reasons against a mask, in the order of the checks

Drawing = tuple[Sample, Mapping[int, ObjectMap]]  # An image, and the numbered maps of its objects


class _Contours(NamedTuple):
    """A cut map, and those of its parts that become regions, with their contours."""

    cut: CutMap
    pieces: list[tuple[HeatPart, RegionMask]]


class Outliner:
    """Draws outlines. Where a GPU's memory does not hold a batch of images, the batch is halved for good.

    The segmenter is loaded here: raise as `load_segmenter`.
    """

    def __init__(self, cutter: Cutter, device: str) -> None:
        self.cutter = cutter
        self.config = cutter.config
        self.segmenter = load_segmenter(self.config.sam, device)
        size = self.config.sam.batch_size or (8 if self.segmenter.device.type == "cuda" else 1)
        self._batches = Batches(size, "segmenter", "a smaller regions.sam.model")

    def close(self) -> None:
        """Let the segmenter go."""
        load_segmenter.cache_clear()

    def regions_of(self, drawings: Sequence[Drawing]) -> Iterator[dict[int, MapRegions]]:
        """Yield the regions of the numbered maps of each image, in order.

        Raise ResourceError if a GPU's memory does not hold one image alone.
        """
        return self._batches.compute(drawings, self._batch)

    def _batch(self, drawings: Sequence[Drawing]) -> Iterator[dict[int, MapRegions]]:
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._prepare, drawings))
        sound = [image for image in images if image is not None]
        encodings = self.segmenter.encode(sound) if sound else {}
        # While the segmenter encodes.
        contours = [
            {number: self._contours(object_map) for number, object_map in maps.items()}
            for _, maps in drawings
        ]
        prompts = [
            [self._prompt(object_.cut, *piece) for object_ in objects.values() for piece in object_.pieces]
            for objects, image in zip(contours, images, strict=True)
            if image is not None
        ]
        masks = iter(self.segmenter.masks(encodings, sound, prompts))
        for objects, image in zip(contours, images, strict=True):
            logits = iter([] if image is None else next(masks))
            yield {
                number: self._outline(object_, image, [next(logits, None) for _ in object_.pieces])
                for number, object_ in objects.items()
            }

    def _prepare(self, drawing: Drawing) -> EncoderInput | None:
        """Return the image as the segmenter takes it; None if it cannot be read, or has no maps."""
        sample, maps = drawing
        if not maps:
            return None
        try:
            return self.segmenter.prepare(decode_rgb(load_image_bytes(sample.image, _LIMITS), _LIMITS))
        except RowFault:
            return None

    def _contours(self, object_map: ObjectMap) -> _Contours:
        cut = self.cutter.cut(object_map)
        return _Contours(cut, contours_of(cut, self.config.min_area_px))

    def _prompt(self, cut: CutMap, part: HeatPart, contour: RegionMask) -> Prompt:
        heat = np.where(part.inside, cut.fine[part.window], -1.0)
        y, x = divmod(int(heat.argmax()), heat.shape[1])
        point_y, point_x = (
            cell_to_px(float(place), side_px=side_px, cells=cells)
            for place, side_px, cells in zip(
                (part.top + y, part.left + x), cut.object_map.size_hw, cut.fine.shape, strict=True
            )
        )
        # A box from heat is rough, and a point alone may mean a part of the object (SAM, arXiv 2304.02643).
        return Prompt(point_xy_px=(point_x, point_y), box_xyxy_px=xywh_to_xyxy(contour.box_xywh_px))

    def _outline(
        self, contours: _Contours, image: EncoderInput | None, masks: Sequence[Plane | None]
    ) -> MapRegions:
        """Return the regions of a map. They do not overlap: the better part keeps what two parts share."""
        cut, pieces = contours
        regions: MapRegions = []
        occupied: Plane | None = None  # the union of the fields of the better parts
        for (part, contour), logits in zip(pieces, masks, strict=True):
            mask = "image" if image is None or logits is None else self._best_mask(cut, part, image, logits)
            fallback = mask if isinstance(mask, str) else None
            field, evidence = (field_of(part, cut.fine), part.evidence) if isinstance(mask, str) else mask
            if occupied is not None and fallback:
                field = _resize(field, occupied)
            elif occupied is not None:
                occupied = _resize(occupied, field)
            free = field if occupied is None else np.minimum(field, -occupied)
            if np.count_nonzero(free > 0) < SAME * np.count_nonzero(field > 0):
                continue
            # Nothing lies before the first part: its contour stays with its learned box.
            is_contour = fallback is not None and occupied is None
            region_mask = contour if is_contour else paint(free, cut.object_map.size_hw)
            if region_mask is not None and region_mask.area_px >= self.config.min_area_px:
                method = "none" if fallback else "sam"
                region_mask = replace(region_mask, refined=method, fallback=fallback)
                regions.append((region_mask, cut.evidence_of(evidence, region_mask)))
                occupied = field if occupied is None else np.maximum(occupied, field)
        return regions

    def _best_mask(
        self, cut: CutMap, part: HeatPart, image: EncoderInput, masks: Plane
    ) -> tuple[Plane, Evidence] | str:
        """Return the field of the best mask with its evidence, or a word of `_REASONS` if no mask will do.

        The best one has the highest score of its evidence: the share of all heat in the mask times
        the contrast of the heat there and outside.
        """
        object_map = cut.object_map
        cells = image.cells(masks)
        size_wh = cells.shape[:0:-1]
        heat: Plane = cv2.resize(cut.fine, size_wh, interpolation=cv2.INTER_LINEAR)
        part_mask = np.zeros(cut.fine.shape, np.uint8)
        part_mask[part.window] = part.inside
        part_heat = np.where(cv2.resize(part_mask, size_wh, interpolation=cv2.INTER_NEAREST) > 0, heat, 0)
        total = float(heat.sum(dtype=np.float64))
        smallest = self.config.min_area_px / math.prod(object_map.size_hw)
        candidates: list[tuple[float, int, Mask, Evidence]] = []
        reason = 0
        for number, logits in enumerate(cells):
            inside = _without_islands(logits > 0)
            checks = (
                bool(np.isfinite(logits).all()),
                inside.mean() >= max(self.config.min_area_share, smallest),
                part_heat[inside].sum() >= LEAST_HEAT * part_heat.sum(),
                1 / MOST_CHANGE <= inside.mean() / part.evidence.area <= MOST_CHANGE,
            )
            if not all(checks):
                reason = max(reason, checks.index(False))
                continue
            evidence = measure(heat, inside.view(np.uint8), total, inside.size, cut.threshold)
            candidates.append((evidence.score, number, inside, evidence))
        if not candidates:
            return _REASONS[reason]
        _, number, inside, evidence = max(candidates, key=itemgetter(0))
        mask: Plane = masks[number].copy()
        visible = mask[: inside.shape[0], : inside.shape[1]]
        visible[~inside] = -np.abs(visible[~inside])
        return image.field(mask), evidence


def _resize(field: Plane, other: Plane) -> Plane:
    """Return a field on the samples of another one."""
    resized: Plane = cv2.resize(field, other.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def _without_islands(inside: Mask) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inside.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # of what lies outside
    mainland: Mask = (areas >= max(1, ISLAND * areas.max()))[labels]
    return mainland
