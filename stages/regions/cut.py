"""From a map to its cut parts.

    surface_of      the map that is cut: smoothed, and with `upsample: guided` drawn along the edges of the image
    refine_grid     the same between its cells (`fine_map.py`)
    threshold_of    where it is cut (`cut_rules.py`)
    parts_of        what lies above (`parts.py`)
    ladder_of       the parts at many cuts, if a calibration has learned boxes (`ladder.py`)
    fill_box        the first part, in the box that a calibration has learned for it (`learned_box.py`)

`contours.py` makes regions of the parts. With `refine: sam`, `outlines.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import cv2
import numpy as np

from phrasebox.stages.contract.geometry import xywh_to_xyxy
from phrasebox.stages.contract.levels import quantise
from phrasebox.stages.contract.values import Levels, Plane, Sides
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut_rules import CUTS, threshold_of
from phrasebox.stages.regions.fine_map import refine_grid
from phrasebox.stages.regions.ladder import ladder_of
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

    def cut(self, object_map: ObjectMap) -> CutMap:
        """Threshold, split and rank a map, and give its first part the learned box."""
        cut = self._cut(object_map, None)
        if self.box_fit is None or not self.box_fit.networks or cut.view is None:
            return cut
        return fill_box(cut, self.box_fit.box_of(cut.view))

    def cut_on_canvas(self, object_map: ObjectMap) -> CutMap:
        """Threshold, split and rank a map whose fine map has the pixels of the canvas, for outlines by colour.

        These are at least as many as the cells. Colours draw their own boxes.
        """
        return self._cut(object_map, object_map.pixels.size_hw)

    def _cut(self, object_map: ObjectMap, fine_hw: Sides | None) -> CutMap:
        """Cut a map; `fine_hw` as in `refine_grid`, but a guided map has the pixels of the canvas."""
        surface = self.surface_of(object_map)
        if surface is None:
            return CutMap(object_map=object_map, fine=np.zeros((1, 1), np.float32), threshold=0.5, parts=[])
        if surface.is_guided:
            fine = surface.levels.astype(np.float32)
        else:
            fine = refine_grid(surface.levels, fine_hw, object_map.shift_cells)
        # By the levels and not by the fine map: values between the cells would move the mean and
        # Otsu's threshold.
        threshold = threshold_of(surface.levels, self.config, self.fitted_cut, object_map.usual_size)
        parts = parts_of(fine, fine > threshold, threshold, self.config)
        view = None
        if object_map.context is not None and parts:
            ladder = ladder_of(object_map.levels, object_map.shift_cells)
            view = MapView(ladder, *object_map.context, _box_of(parts[0].window, fine.shape))
        return CutMap(object_map=object_map, fine=fine, threshold=threshold, parts=parts, view=view)


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
