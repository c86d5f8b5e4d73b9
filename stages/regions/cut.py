"""From a heat map to its regions: smoothed or guided, cut, its parts outlined and painted.

`thresholds.py` says where the map is cut and `parts.py` which parts it falls into.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS, quantise
from stages.regions.colours import SURE_SHARE, Canvas, grabcut
from stages.regions.config import RegionsConfig
from stages.regions.paint import RegionMask, field_of, paint
from stages.regions.parts import HeatPart, ThingMap, parts_of, refine_grid
from stages.regions.score import Evidence
from stages.regions.thresholds import FittedCut, Levels, threshold_of

MapRegions = list[tuple[RegionMask, Evidence]]  # The regions of a map, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A map with the parts it falls into.

    Attributes:
        fine: float32 (fine_h, fine_w), heat in levels, see `parts.refine_grid`.
        threshold: In levels.
        parts: Those with most heat first, without those that fall behind (`keep_share`).
    """

    fine: NDArray[np.float32]
    threshold: float
    parts: list[HeatPart]


class Surface(NamedTuple):
    """The map that regions are cut from; it is bilinear between its values.

    Attributes:
        levels: uint8 (grid_h, grid_w), or (H, W) of the canvas if it is guided.
        is_guided: Whether it follows the edges of the canvas.
    """

    levels: Levels
    is_guided: bool


def regions_of_map(thing_map: ThingMap, config: RegionsConfig, fitted_cut: FittedCut | None = None) -> MapRegions:
    """Return the regions of a map; for `refine: sam` their contours, which `outlines.Outliner` refines.

    Those with most heat come first, without parts that fall behind (`keep_share`) or are too
    small. They do not overlap.
    """
    colour_cut = _cut_by_colours(thing_map, config, fitted_cut) if config.refine == "grabcut" else None
    cut = colour_cut or cut_map(thing_map, config, fitted_cut)
    pieces = [] if cut is None else pieces_of(cut, thing_map, config)
    if config.refine != "grabcut":
        return [(region_mask, part.evidence) for part, region_mask in pieces]
    method, fallback = ("grabcut", None) if colour_cut else ("none", "colours")
    return [(replace(region_mask, refined=method, fallback=fallback), part.evidence) for part, region_mask in pieces]


def pieces_of(cut: CutMap, thing_map: ThingMap, config: RegionsConfig) -> list[tuple[HeatPart, RegionMask]]:
    """Return the parts of a cut map that become regions, with their contours, best first."""
    pieces: list[tuple[HeatPart, RegionMask]] = []
    for part in cut.parts:
        if len(pieces) == thing_map.limit:
            break
        region_mask = paint(field_of(part, cut.fine, cut.threshold), thing_map.size_hw)
        if region_mask is not None and region_mask.area_px >= config.min_area_px:  # else the next best takes its place
            pieces.append((part, region_mask))
    return pieces


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
    thing_map: ThingMap, config: RegionsConfig, fitted_cut: FittedCut | None = None, *, on_canvas: bool = False
) -> CutMap | None:
    """Threshold, split and rank a map; None if there is nothing to cut, see `surface_of`.

    on_canvas: Give the fine map the pixels of the canvas, which are at least as many as the
        cells. A guided map has them anyway; others have `parts.samples_per_cell` samples per
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
    return CutMap(fine=fine, threshold=threshold, parts=parts)


def _cut_by_colours(thing_map: ThingMap, config: RegionsConfig, fitted_cut: FittedCut | None) -> CutMap | None:
    """Return the cut map on the canvas, with the outlines of its first parts drawn by colour.

    None if nothing is cut, or the colours decide nothing, see `colours.grabcut`.
    """
    canvas = _canvas(thing_map)
    grid_hw = thing_map.levels.shape
    cut = cut_map(thing_map, config, fitted_cut, on_canvas=True)
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
    return CutMap(fine=np.ones_like(cut.fine), threshold=0.0, parts=parts) if parts else None


def _canvas(thing_map: ThingMap) -> Canvas:
    assert thing_map.canvas is not None, "the records still have their pixels"  # noqa: S101
    return thing_map.canvas
