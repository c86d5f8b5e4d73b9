"""From the parts of a cut map to regions: painted along the contour of the heat, or outlined by colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from phrasebox.stages.contract.geometry import box_iou, xyxy_to_xywh
from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.regions.colours import SURE_SHARE, grabcut
from phrasebox.stages.regions.cut import SAME_BOX, CutMap, Cutter
from phrasebox.stages.regions.paint import RegionMask, field_of, paint
from phrasebox.stages.regions.parts import HeatPart, ObjectMap, parts_of
from phrasebox.stages.scores.fits import Floats
from phrasebox.stages.scores.score import Evidence

MapRegions = list[tuple[RegionMask, Evidence]]  # The regions of a map, best first


def regions_of_maps(object_maps: Sequence[ObjectMap], cutter: Cutter) -> list[MapRegions]:
    """Return the regions of each map of an image, those with most heat first; they do not overlap.

    With `refine: grabcut` colours draw the outlines, where they decide something. For
    `refine: sam` see `outlines.Outliner`.
    """
    if cutter.config.refine != "grabcut":
        return [_regions_of(cut, cutter) for cut in cutter.cut(object_maps)]
    colour_cuts = [_cut_by_colours(object_map, cutter) for object_map in object_maps]
    rest = [object_map for object_map, cut in zip(object_maps, colour_cuts, strict=True) if cut is None]
    plain_cuts = iter(cutter.cut(rest))
    return [
        _marked(_regions_of(next(plain_cuts), cutter), "none", "colours")
        if cut is None
        else _marked(_regions_of(cut, cutter), "grabcut", None)
        for cut in colour_cuts
    ]


def _marked(regions: MapRegions, method: str, fallback: str | None) -> MapRegions:
    """Return regions that say what drew their outlines, and why nothing else did."""
    return [
        (replace(region_mask, refined=method, fallback=fallback), evidence)
        for region_mask, evidence in regions
    ]


def _regions_of(cut: CutMap, cutter: Cutter) -> MapRegions:
    return [
        (region_mask, cut.evidence_of(part.evidence, region_mask))
        for part, region_mask in contours_of(cut, cutter.config.min_area_px)
    ]


def contours_of(cut: CutMap, min_area_px: int) -> list[tuple[HeatPart, RegionMask]]:
    """Return the parts of a cut map that become regions, with their contours, best first.

    The next best takes the place of a part with fewer pixels than `min_area_px`.
    """
    contours: list[tuple[HeatPart, RegionMask]] = []
    for part in cut.parts:
        if len(contours) == cut.object_map.limit:
            break
        region_mask = paint(field_of(part, cut.fine), cut.object_map.size_hw)
        if region_mask is not None and region_mask.area_px >= min_area_px:
            contours.append((part, _with_box(region_mask, cut.box if part is cut.parts[0] else None)))
    return contours


def _with_box(region_mask: RegionMask, box: Floats | None) -> RegionMask:
    """Return the region with a learned box (shares of the image, see `CutMap`) unless it is nearly that of the mask."""
    if box is None:
        return region_mask
    height_px, width_px = region_mask.mask.size_hw
    x0, y0, x1, y1 = np.rint(box * (width_px, height_px, width_px, height_px)).tolist()
    learned = xyxy_to_xywh((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    if box_iou(learned, region_mask.box_xywh_px) >= SAME_BOX:
        return region_mask
    return replace(region_mask, box_xywh_px=learned, box_of="learned")


def _cut_by_colours(object_map: ObjectMap, cutter: Cutter) -> CutMap | None:
    """Return the cut map on the canvas, with the outlines of its first parts drawn by colour.

    None if nothing is cut, or the colours decide nothing, see `colours.grabcut`.
    """
    cut = cutter.cut_on_canvas(object_map)
    if not cut.parts:
        return None
    inside = np.zeros(cut.fine.shape, dtype=np.bool_)
    for part in cut.parts[: object_map.limit]:
        inside[part.window] |= part.inside
    sure = cut.fine > cut.threshold + SURE_SHARE * (LEVELS - cut.threshold)
    canvas = object_map.pixels
    foreground = grabcut(canvas.rgb, inside, sure, patch_px=canvas.patch_px(object_map.levels.shape))
    if foreground is None:
        return None
    parts = parts_of(cut.fine, foreground, cut.threshold, cutter.config)
    # The outline of colours runs halfway between the pixels, whatever the heat.
    parts = [replace(part, threshold=0.0) for part in parts]
    return replace(cut, fine=np.ones_like(cut.fine), threshold=0.0, parts=parts) if parts else None
