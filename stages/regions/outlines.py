"""Outlines by a segmenter (`regions.refine: sam`): the heat says where an object is, and SAM draws its edge.

docs/explanation/how-it-works.md says which mask is taken, and when the contour stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, NamedTuple

import cv2
import numpy as np

from phrasebox.stages.contract.errors import RowFault
from phrasebox.stages.contract.geometry import cell_to_px, xywh_to_xyxy
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.contract.values import Plane, Sides
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
            dict(zip(maps, self._contours(list(maps.values())), strict=True)) for _, maps in drawings
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

    def _contours(self, object_maps: Sequence[ObjectMap]) -> list[_Contours]:
        return [
            _Contours(cut, contours_of(cut, self.config.min_area_px))
            for cut in self.cutter.cut(object_maps)
        ]

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
            outline = self._outline_part(cut, part, image, logits)
            field = outline.field
            if occupied is not None:
                field, occupied = _on_same_samples(outline, occupied)
            free = _free_part(field, occupied)
            if free is None:
                continue
            # Nothing lies before the first part: its contour stays with its learned box.
            is_contour = outline.fallback is not None and occupied is None
            region_mask = contour if is_contour else paint(free, cut.object_map.size_hw)
            if region_mask is not None and region_mask.area_px >= self.config.min_area_px:
                method = "none" if outline.fallback else "sam"
                region_mask = replace(region_mask, refined=method, fallback=outline.fallback)
                regions.append((region_mask, cut.evidence_of(outline.evidence, region_mask)))
                occupied = field if occupied is None else np.maximum(occupied, field)
        return regions

    def _outline_part(
        self, cut: CutMap, part: HeatPart, image: EncoderInput | None, masks: Plane | None
    ) -> _Outline:
        """Return the best of the masks (masks, cells_h, cells_w) of a part, or its contour if none will do.

        The best one has the highest score of its evidence: the share of all heat in the mask times
        the contrast of the heat there and outside. `masks` are logits.
        """
        if image is None or masks is None:
            return _contour(cut, part, "image")
        cells = image.cells(masks)
        heat = _heat_on(cells.shape[1:], cut, part)
        insides = [_without_islands(logits > 0) for logits in cells]
        passed = [
            self._passed_checks(logits, inside, cut, part, heat)
            for logits, inside in zip(cells, insides, strict=True)
        ]
        evidence = {
            number: heat.evidence_of(insides[number], cut.threshold)
            for number, checks in enumerate(passed)
            if checks == len(_REASONS)
        }
        if not evidence:
            return _contour(cut, part, _REASONS[max(passed, default=0)])
        best = max(evidence, key=lambda number: evidence[number].score)
        return _Outline(_field_of_mask(image, masks[best], insides[best]), evidence[best])

    def _passed_checks(
        self, logits: Plane, inside: Mask, cut: CutMap, part: HeatPart, heat: _PartHeat
    ) -> int:
        """Return how many checks of a mask (cells_h, cells_w) come before the first that fails, see `_REASONS`."""
        share = inside.mean()
        smallest = self.config.min_area_px / math.prod(cut.object_map.size_hw)
        checks = (
            bool(np.isfinite(logits).all()),
            share >= max(self.config.min_area_share, smallest),
            heat.of_part[inside].sum() >= LEAST_HEAT * heat.of_part.sum(),
            1 / MOST_CHANGE <= share / part.evidence.area <= MOST_CHANGE,
        )
        return len(checks) if all(checks) else checks.index(False)


class _Outline(NamedTuple):
    """How a part is drawn.

    Attributes:
        field: See `paint.py`, of the segmenter's mask or of the contour.
        evidence: Of what is inside.
        fallback: Why it is the contour, a word of `_REASONS` or "image"; None for a mask.
    """

    field: Plane
    evidence: Evidence
    fallback: str | None = None


def _contour(cut: CutMap, part: HeatPart, fallback: str) -> _Outline:
    return _Outline(field_of(part, cut.fine), part.evidence, fallback)


def _field_of_mask(image: EncoderInput, logits: Plane, inside: Mask) -> Plane:
    """Return the field of a mask, whose logits (cells_h, cells_w) count as outside unless they are `inside`."""
    field: Plane = logits.copy()
    visible = field[: inside.shape[0], : inside.shape[1]]
    visible[~inside] = -np.abs(visible[~inside])
    return image.field(field)


class _PartHeat(NamedTuple):
    """A map in levels on the cells of the segmenter's masks.

    Attributes:
        whole: float32 (cells_h, cells_w), all heat.
        of_part: The same where a part of the map lies, and 0 elsewhere.
        total: The sum of all heat.
    """

    whole: Plane
    of_part: Plane
    total: float

    def evidence_of(self, inside: Mask, threshold: float) -> Evidence:
        """Return the evidence of a mask (cells_h, cells_w)."""
        return measure(self.whole, inside.view(np.uint8), self.total, inside.size, threshold)


def _heat_on(cells_hw: Sides, cut: CutMap, part: HeatPart) -> _PartHeat:
    """Return a map and one of its parts on the cells of masks."""
    cells_wh = cells_hw[::-1]
    whole: Plane = cv2.resize(cut.fine, cells_wh, interpolation=cv2.INTER_LINEAR)
    part_mask = np.zeros(cut.fine.shape, np.uint8)
    part_mask[part.window] = part.inside
    is_in_part = cv2.resize(part_mask, cells_wh, interpolation=cv2.INTER_NEAREST) > 0
    return _PartHeat(whole, np.where(is_in_part, whole, 0), float(whole.sum(dtype=np.float64)))


def _on_same_samples(outline: _Outline, occupied: Plane) -> tuple[Plane, Plane]:
    """Return the field of an outline, and the better parts', on the samples of the last mask that was drawn."""
    if outline.fallback:
        return _resize(outline.field, occupied), occupied
    return outline.field, _resize(occupied, outline.field)


def _free_part(field: Plane, occupied: Plane | None) -> Plane | None:
    """Return the field without what the better parts cover; None if they cover too much of it, see `SAME`."""
    free = field if occupied is None else np.minimum(field, -occupied)
    if np.count_nonzero(free > 0) < SAME * np.count_nonzero(field > 0):
        return None
    return free


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
