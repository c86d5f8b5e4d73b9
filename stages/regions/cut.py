"""From a heat map to its regions: smoothed or guided, cut, its parts outlined and painted.

`thresholds.py` says where the map is cut and `parts.py` which parts it falls into.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import box_iou, xywh_to_xyxy, xyxy_to_xywh
from stages.contract.levels import LEVELS, quantise
from stages.regions.colours import SURE_SHARE, Canvas, grabcut
from stages.regions.config import RegionsConfig
from stages.regions.fine_map import refine_grid
from stages.regions.ladder import ladder_of
from stages.regions.learned_box import BoxFit, MapView
from stages.regions.paint import RegionMask, field_of, paint
from stages.regions.parts import HeatPart, ThingMap, measure, parts_of
from stages.regions.score import Evidence
from stages.regions.thresholds import SHARES, FittedCut, Levels, fixed_cut, threshold_of
from stages.shared.fits import Floats

SAME_BOX: Final = 0.9  # least IoU of a learned box with a mask's that needs no box beside it

MapRegions = list[tuple[RegionMask, Evidence]]  # The regions of a map, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A map with the parts it falls into.

    Attributes:
        fine: float32 (fine_h, fine_w), heat in levels, see `fine_map.refine_grid`.
        threshold: In levels.
        parts: Those with most heat first, without those that fall behind (`keep_share`).
        view: What a `BoxFit` sees; None without one.
        box: The learned box of the first part, x0, y0, x1, y1 as shares of the image; None where
            the part has its own.
    """

    fine: NDArray[np.float32]
    threshold: float
    parts: list[HeatPart]
    view: MapView | None = None
    box: Floats | None = None

    def evidence_of(self, evidence: Evidence, region_mask: RegionMask) -> Evidence:
        """Return the evidence of a region of this map with that of its box."""
        if self.view is None:
            return evidence
        height_px, width_px = region_mask.mask.size_hw
        box = np.array(xywh_to_xyxy(region_mask.box_xywh_px)) / (width_px, height_px, width_px, height_px)
        return replace(evidence, of_box=self.view.evidence_of(box))


class Surface(NamedTuple):
    """The map that regions are cut from; it is bilinear between its values.

    Attributes:
        levels: uint8 (grid_h, grid_w), or (H, W) of the canvas if it is guided.
        is_guided: Whether it follows the edges of the canvas.
    """

    levels: Levels
    is_guided: bool


def regions_of_map(
    thing_map: ThingMap, config: RegionsConfig, fitted_cut: FittedCut | None = None, box_fit: BoxFit | None = None
) -> MapRegions:
    """Return the regions of a map; for `refine: sam` their contours, which `outlines.Outliner` refines.

    Those with most heat come first, without parts that fall behind (`keep_share`) or are too
    small. They do not overlap.
    """
    colour_cut = _cut_by_colours(thing_map, config, fitted_cut, box_fit) if config.refine == "grabcut" else None
    cut = colour_cut or cut_map(thing_map, config, fitted_cut, box_fit)
    if cut is None:
        return []
    regions = [
        (region_mask, cut.evidence_of(part.evidence, region_mask))
        for part, region_mask in pieces_of(cut, thing_map, config)
    ]
    if config.refine != "grabcut":
        return regions
    method, fallback = ("grabcut", None) if colour_cut else ("none", "colours")
    return [(replace(region_mask, refined=method, fallback=fallback), evidence) for region_mask, evidence in regions]


def pieces_of(cut: CutMap, thing_map: ThingMap, config: RegionsConfig) -> list[tuple[HeatPart, RegionMask]]:
    """Return the parts of a cut map that become regions, with their contours, best first."""
    pieces: list[tuple[HeatPart, RegionMask]] = []
    for part in cut.parts:
        if len(pieces) == thing_map.limit:
            break
        region_mask = paint(field_of(part, cut.fine), thing_map.size_hw)
        if region_mask is not None and region_mask.area_px >= config.min_area_px:  # else the next best takes its place
            pieces.append((part, with_box(region_mask, cut.box if part is cut.parts[0] else None)))
    return pieces


def with_box(region_mask: RegionMask, box: Floats | None) -> RegionMask:
    """Return the region with a learned box (shares of the image, see `CutMap`) unless it is nearly that of the mask."""
    if box is None:
        return region_mask
    height_px, width_px = region_mask.mask.size_hw
    x0, y0, x1, y1 = np.rint(box * (width_px, height_px, width_px, height_px)).tolist()
    learned = xyxy_to_xywh((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    if box_iou(learned, region_mask.box_xywh_px) >= SAME_BOX:
        return region_mask
    return replace(region_mask, box_xywh_px=learned, box_of="learned")


def surface_of(thing_map: ThingMap, config: RegionsConfig) -> Surface | None:
    """Return the surface of a map; None if the blur leaves nothing to see."""
    levels: Levels | None = thing_map.levels
    if config.smooth_patches:
        sigma = config.smooth_patches  # beyond the border the outermost cells continue
        levels = quantise(
            cv2.GaussianBlur(thing_map.levels.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        )
    if levels is None:
        return None
    if config.upsample == "guided":
        guide = _canvas(thing_map).guide(levels.shape)
        guided_levels = quantise(np.maximum(guide(refine_grid(levels, guide.size_hw, thing_map.shift_cells)), 0))
        if guided_levels is not None:
            return Surface(guided_levels, is_guided=True)
    return Surface(levels, is_guided=False)


def cut_map(
    thing_map: ThingMap,
    config: RegionsConfig,
    fitted_cut: FittedCut | None = None,
    box_fit: BoxFit | None = None,
    *,
    on_canvas: bool = False,
) -> CutMap | None:
    """Threshold, split and rank a map; None if there is nothing to cut, see `surface_of`.

    on_canvas: Give the fine map the pixels of the canvas, which are at least as many as the
        cells. A guided map has them anyway; others have `fine_map.samples_per_cell` samples per
        cell.
    """
    surface = surface_of(thing_map, config)
    if surface is None:
        return None
    if surface.is_guided:
        fine = surface.levels.astype(np.float32)
    else:
        fine_hw = thing_map.canvas.size_hw if on_canvas and thing_map.canvas else None
        fine = refine_grid(surface.levels, fine_hw, thing_map.shift_cells)
    # By the levels and not by the fine map: values between the cells would move the mean and
    # Otsu's threshold.
    threshold = threshold_of(surface.levels, config, fitted_cut, thing_map.usual_size)
    parts = parts_of(fine, fine > threshold, threshold, thing_map.similarity, config)
    cut = CutMap(fine=fine, threshold=threshold, parts=parts)
    if box_fit is None or thing_map.facts is None or thing_map.usual_place is None or not parts:
        return cut
    ladder = ladder_of(thing_map.levels, thing_map.shift_cells)
    view = MapView(ladder, thing_map.facts, thing_map.usual_place, _box_of(parts[0].window, fine.shape))
    cut = replace(cut, view=view)
    has_own_box = on_canvas or not box_fit.networks  # colours draw their own
    return cut if has_own_box else _fill_box(cut, box_fit.box_of(view), thing_map.similarity)


def _box_of(window: tuple[slice, slice], fine_hw: tuple[int, ...]) -> Floats:
    rows, columns = window
    h, w = fine_hw
    return np.array([columns.start / w, rows.start / h, columns.stop / w, rows.stop / h])


def _fill_box(cut: CutMap, box: Floats, similarity: float) -> CutMap:
    """Return the cut whose first part is the heat in a box, above the highest cut that fills the box.

    A cut fills it if the box of its heat has `SAME_BOX` IoU with it; if none does, the best one
    counts. Further parts stay where they do not touch the box. Without heat in the box nothing changes.
    """
    h, w = cut.fine.shape
    left, top = (int(edge) for edge in np.floor(box[:2] * (w, h) + 0.5))
    right, bottom = (int(edge) for edge in np.floor(box[2:] * (w, h) + 0.5))
    window = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
    heat = cut.fine[window]
    if not heat.size:
        return cut
    thresholds = np.array([fixed_cut(share) for share in SHARES])
    spans = [(heat.max(axis=axis)[None] > thresholds[:, None]) for axis in (0, 1)]
    filled = np.prod([_span(span) for span in spans], axis=0)
    if not filled.any():
        return cut
    best = int(np.flatnonzero(filled >= min(SAME_BOX, filled.max()))[-1])
    threshold = float(thresholds[best])
    mask = (heat > threshold).view(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    mask = cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)
    total = cv2.sumElems(cut.fine)[0]
    evidence = measure(heat, mask, total, cut.fine.size, threshold, similarity)
    first = HeatPart(
        inside=mask.view(np.bool_),
        top=top,
        left=left,
        samples=cv2.countNonZero(mask),
        threshold=threshold,
        evidence=evidence,
    )
    further = [part for part in cut.parts[1:] if not _touch(part.window, window)]
    return replace(cut, threshold=threshold, parts=[first, *further], box=box)


def _span(inside: NDArray[np.bool_]) -> Floats:
    """Return the share (n,) of a side from the first to the last place inside, from (n, places)."""
    places = inside.shape[1]
    extent = places - inside.argmax(axis=1) - inside[:, ::-1].argmax(axis=1)
    shares: Floats = np.where(inside.any(axis=1), extent, 0) / places
    return shares


def _touch(first: tuple[slice, slice], second: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _cut_by_colours(
    thing_map: ThingMap, config: RegionsConfig, fitted_cut: FittedCut | None, box_fit: BoxFit | None
) -> CutMap | None:
    """Return the cut map on the canvas, with the outlines of its first parts drawn by colour.

    None if nothing is cut, or the colours decide nothing, see `colours.grabcut`.
    """
    canvas = _canvas(thing_map)
    grid_hw = thing_map.levels.shape
    cut = cut_map(thing_map, config, fitted_cut, box_fit, on_canvas=True)
    if cut is None or not cut.parts:
        return None
    inside = np.zeros(cut.fine.shape, dtype=np.bool_)
    for part in cut.parts[: thing_map.limit]:
        inside[part.window] |= part.inside
    sure = cut.fine > cut.threshold + SURE_SHARE * (LEVELS - cut.threshold)
    foreground = grabcut(canvas.rgb, inside, sure, patch_px=canvas.patch_px(grid_hw))
    if foreground is None:
        return None
    parts = parts_of(cut.fine, foreground, cut.threshold, thing_map.similarity, config)
    # The outline of colours runs halfway between the pixels, whatever the heat.
    parts = [replace(part, threshold=0.0) for part in parts]
    return replace(cut, fine=np.ones_like(cut.fine), threshold=0.0, parts=parts) if parts else None


def _canvas(thing_map: ThingMap) -> Canvas:
    assert thing_map.canvas is not None, "the records still have their pixels"  # noqa: S101
    return thing_map.canvas
