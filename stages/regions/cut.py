"""From a map to its cut parts.

    surface_of      the map that is cut: smoothed, and with `upsample: guided` drawn along the edges of the image
    refine_grid     the same between its cells (`fine_map.py`)
    thresholds_of   where it is cut (`cut_rules.py`)
    parts_of        what lies above (`parts.py`)
    ladders_of      the parts at many cuts, if a calibration has learned boxes (`ladder.py`)
    fill_box        the first part, in the box that a calibration has learned for it (`learned_box.py`)

`contours.py` makes regions of the parts. With `refine: sam`, `outlines.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

import cv2
import numpy as np

from phrasebox.stages.contract.geometry import xywh_to_xyxy
from phrasebox.stages.contract.levels import map_by_size, quantise
from phrasebox.stages.contract.values import Levels, Plane, Sides
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut_rules import CUTS, thresholds_of
from phrasebox.stages.regions.fine_map import refine_grid
from phrasebox.stages.regions.ladder import ladders_of
from phrasebox.stages.regions.paint import RegionMask
from phrasebox.stages.regions.parts import HeatPart, ObjectMap, part_of, parts_of
from phrasebox.stages.scores.fits import Floats
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.learned_box import BoxModel, MapView
from phrasebox.stages.scores.score import Evidence

SAME_BOX: Final = 0.9  # least IoU of two boxes that count as one


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A map with the parts it falls into.

    Attributes:
        object_map: The map.
        fine: float32 (fine_h, fine_w), heat in levels, see `fine_map.refine_grid`.
        threshold: In levels.
        parts: Those with most heat first, without those that fall behind (`keep_share`).
        view: What a `BoxModel` sees; None without one.
        box: The learned box of the first part, x0, y0, x1, y1 as shares of the image; None where
            the box is that of the part.
    """

    object_map: ObjectMap
    fine: Plane
    threshold: float
    parts: list[HeatPart]
    view: MapView | None = None
    box: Floats | None = None

    def evidence_of(self, evidence: Evidence, region_mask: RegionMask) -> Evidence:
        """Return the evidence of a region of this map with that of its box."""
        if self.view is None:
            return evidence
        height_px, width_px = region_mask.mask.size_hw
        sides_px = (width_px, height_px, width_px, height_px)
        box = np.array(xywh_to_xyxy(region_mask.box_xywh_px)) / sides_px
        return replace(evidence, of_box=self.view.evidence_of(box))


class SmoothedMap(NamedTuple):
    """The map that is cut; it is bilinear between its values.

    Attributes:
        levels: uint8 (grid_h, grid_w), or (H, W) of the canvas if it is guided.
        is_guided: Whether it follows the edges of the canvas.
    """

    levels: Levels
    is_guided: bool


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts maps.

    Attributes:
        config: How to cut.
        fitted_cut: For the rule `fitted`, see `RegionsConfig.with_fallback_cut`.
        box_fit: Knows where boxes are.
    """

    config: RegionsConfig
    fitted_cut: FittedCut | None = None
    box_fit: BoxModel | None = None

    def surface_of(self, object_map: ObjectMap) -> SmoothedMap | None:
        """Return the surface of a map; None if the blur leaves nothing to see."""
        levels: Levels | None = object_map.levels
        if sigma := self.config.smooth_patches:
            heat = object_map.levels.astype(np.float32)
            # Beyond the border the outermost cells continue.
            levels = quantise(cv2.GaussianBlur(heat, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))
        if levels is None:
            return None
        if self.config.upsample == "guided":
            guide = object_map.pixels.guide(levels.shape)
            heat = guide(refine_grid(levels, guide.size_hw, object_map.shift_cells))
            guided_levels = quantise(np.maximum(heat, 0))
            if guided_levels is not None:
                return SmoothedMap(guided_levels, is_guided=True)
        return SmoothedMap(levels, is_guided=False)

    def cut(self, object_maps: Sequence[ObjectMap]) -> list[CutMap]:
        """Threshold, split and rank the maps of an image, and give the first part of each the learned box."""
        cuts = self._cut(object_maps, None)
        box_fit = self.box_fit
        if box_fit is None or not box_fit.networks:
            return cuts
        boxes = iter(box_fit.boxes_of([cut.view for cut in cuts if cut.view is not None]))
        return [cut if cut.view is None else fill_box(cut, next(boxes)) for cut in cuts]

    def cut_on_canvas(self, object_map: ObjectMap) -> CutMap:
        """Threshold, split and rank a map whose fine map has the pixels of the canvas, for outlines by colour.

        These are at least as many as the cells. Colours draw their own boxes.
        """
        [cut] = self._cut([object_map], object_map.pixels.size_hw)
        return cut

    def _cut(self, object_maps: Sequence[ObjectMap], fine_hw: Sides | None) -> list[CutMap]:
        """Cut maps; `fine_hw` as in `refine_grid`, but a guided map has the pixels of the canvas."""
        surfaces = list(map(self.surface_of, object_maps))
        pairs = list(zip(object_maps, surfaces, strict=True))
        # By the levels and not by the fine map: values between the cells would move the mean and
        # Otsu's threshold.
        thresholds = iter(
            map_by_size(
                partial(thresholds_of, self.config, self.fitted_cut),
                [surface.levels for surface in surfaces if surface is not None],
                [object_map.usual_size for object_map, surface in pairs if surface is not None],
            )
        )
        cuts = [
            CutMap(object_map=object_map, fine=np.zeros((1, 1), np.float32), threshold=0.5, parts=[])
            if surface is None
            else self._split(object_map, surface, next(thresholds), fine_hw)
            for object_map, surface in pairs
        ]
        return with_views(cuts)

    def _split(
        self, object_map: ObjectMap, surface: SmoothedMap, threshold: float, fine_hw: Sides | None
    ) -> CutMap:
        if surface.is_guided:
            fine = surface.levels.astype(np.float32)
        else:
            fine = refine_grid(surface.levels, fine_hw, object_map.shift_cells)
        parts = parts_of(fine, fine > threshold, threshold, self.config)
        return CutMap(object_map=object_map, fine=fine, threshold=threshold, parts=parts)


def with_views(cuts: Sequence[CutMap]) -> list[CutMap]:
    """Return cuts with what a `BoxModel` sees of each that has parts and a context."""
    contexts = [cut.object_map.context if cut.parts else None for cut in cuts]
    maps = [cut.object_map for cut, context in zip(cuts, contexts, strict=True) if context is not None]
    levels = [object_map.levels for object_map in maps]
    ladders = iter(map_by_size(ladders_of, levels, [object_map.shift_cells for object_map in maps]))
    return [
        cut
        if context is None
        else replace(
            cut, view=MapView(next(ladders), *context, _box_of(cut.parts[0].window, cut.fine.shape))
        )
        for cut, context in zip(cuts, contexts, strict=True)
    ]


def _box_of(window: tuple[slice, slice], fine_hw: tuple[int, ...]) -> Floats:
    rows, columns = window
    h, w = fine_hw
    return np.array([columns.start / w, rows.start / h, columns.stop / w, rows.stop / h])


def fill_box(cut: CutMap, box: Floats) -> CutMap:
    """Return the cut whose first part is the heat in a box, above the highest cut that fills the box.

    A cut fills it if the box of its heat has `SAME_BOX` IoU with it; if none does, the best one
    counts. Further parts stay where they do not touch the box. Without heat in the box nothing
    changes.
    """
    h, w = cut.fine.shape
    left, top = (int(edge) for edge in np.floor(box[:2] * (w, h) + 0.5))
    right, bottom = (int(edge) for edge in np.floor(box[2:] * (w, h) + 0.5))
    window = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
    heat = cut.fine[window]
    if not heat.size:
        return cut
    filled = np.prod([_spans(heat.max(axis=axis)) for axis in (0, 1)], axis=0)
    if not filled.any():
        return cut
    best = int(np.flatnonzero(filled >= min(SAME_BOX, filled.max()))[-1])
    threshold = float(CUTS[best])
    mask = (heat > threshold).view(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    mask = cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)
    first = part_of(cut.fine, mask, (top, left), threshold)
    further = [part for part in cut.parts[1:] if not _touch(part.window, window)]
    return replace(cut, threshold=threshold, parts=[first, *further], box=box)


def _spans(highest: Plane) -> Floats:
    """Return the share of a side from the first to the last place above each of `CUTS`, given its heat (places,)."""
    inside = highest > CUTS[:, None]
    places = len(highest)
    extent = places - inside.argmax(axis=1) - inside[:, ::-1].argmax(axis=1)
    spans: Floats = np.where(inside.any(axis=1), extent, 0) / places
    return spans


def _touch(first: tuple[slice, slice], second: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))
