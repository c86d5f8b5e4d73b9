"""From a heat map to its regions: smoothed or guided, cut, its parts outlined and painted.

`thresholds.py` says where the map is cut and `parts.py` which parts it falls into.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS, quantise
from stages.regions.colours import SURE_SHARE, Canvas, grabcut
from stages.regions.config import RegionsConfig
from stages.regions.paint import Painted, field_of, paint
from stages.regions.parts import HeatPart, MapToCut, parts_of, refine_grid
from stages.regions.score import Evidence
from stages.regions.thresholds import FittedCut, Levels, threshold_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A map with the parts it falls into."""

    fine: NDArray[np.float32]  # float32 (fine_h, fine_w), heat in levels, see `parts.refine_grid`
    threshold: float  # In levels
    parts: list[HeatPart]  # Best first by `config.rank`, without those that fall behind the best (`keep_share`)


def regions_of_map(
    each: MapToCut, config: RegionsConfig, fitted: FittedCut | None = None
) -> list[tuple[Painted, Evidence]]:
    """Return the regions of a map; `outlines.Outliner` makes those of `refine: sam`, whose contours these are.

    They are best first by `config.rank`, without parts that fall behind the best (`keep_share`) or are too small, and
    do not overlap.
    """
    refined = _refined(each, config, fitted) if config.refine == "grabcut" else None
    pieces = pieces_of(refined or cut_map(each, config, fitted), each, config)
    if config.refine != "grabcut":
        return [(painted, part.evidence) for part, painted in pieces]
    by, fallback = ("grabcut", None) if refined else ("none", "colours")
    return [(replace(painted, refined=by, fallback=fallback), part.evidence) for part, painted in pieces]


def pieces_of(found: CutMap | None, each: MapToCut, config: RegionsConfig) -> list[tuple[HeatPart, Painted]]:
    """Return the wanted parts of a cut map with their contours, best first."""
    pieces: list[tuple[HeatPart, Painted]] = []
    if found is None:
        return pieces
    for part in found.parts:
        if len(pieces) == each.limit:
            break
        painted = paint(field_of(part, found.fine, found.threshold), each.size_hw)
        if painted is not None and painted.area_px >= config.min_area_px:  # else the next best takes its place
            pieces.append((part, painted))
    return pieces


def surface_of(each: MapToCut, config: RegionsConfig) -> Levels | None:
    """Return the map that regions are cut from, which is bilinear between its values.

    A map on a canvas with fewer pixels than the map has cells is not guided.

    It is uint8 (grid_h, grid_w), or (H, W) of the canvas if it is guided; None if the blur leaves nothing to see.
    """
    levels: Levels | None = each.levels
    if config.smooth_patches:
        sigma = config.smooth_patches  # beyond the border the outermost cells continue
        levels = quantise(
            cv2.GaussianBlur(each.levels.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        )
    if levels is None or config.upsample == "linear" or not (canvas := _canvas(each)).holds(levels.shape):
        return levels
    guide = canvas.guide(levels.shape)
    guided = quantise(np.maximum(guide(refine_grid(levels, guide.size_hw, each.shift_cells)), 0))
    return levels if guided is None else guided


def cut_map(
    each: MapToCut, config: RegionsConfig, fitted: FittedCut | None = None, *, on_canvas: bool = False
) -> CutMap | None:
    """Threshold, split and rank a map; None if there is nothing to cut, see `surface_of`.

    on_canvas: Give the fine map the pixels of the canvas, which are at least as many as the cells. A guided map has
        them anyway; others have `parts.samples_per_cell` samples per cell.
    """
    levels = surface_of(each, config)
    if levels is None:
        return None
    if levels.shape != each.levels.shape:  # guided
        fine = levels.astype(np.float32)
    else:
        fine = refine_grid(levels, each.canvas.size_hw if on_canvas and each.canvas else None, each.shift_cells)
    # By the levels and not by the fine map: values between the cells would move mean, quantile and Otsu's threshold.
    threshold = threshold_of(levels, config, fitted, each.usual)
    return CutMap(fine=fine, threshold=threshold, parts=parts_of(each, fine, fine > threshold, threshold, config))


def _refined(each: MapToCut, config: RegionsConfig, fitted: FittedCut | None) -> CutMap | None:
    """The cut map on the canvas, with the outlines of the parts that are wanted drawn by colour.

    None if nothing is cut, and where the colours say nothing, see `colours.grabcut`.
    """
    canvas = _canvas(each)
    found = cut_map(each, config, fitted, on_canvas=True) if canvas.holds(each.levels.shape) else None
    if found is None or not found.parts:
        return None
    inside = np.zeros(found.fine.shape, dtype=np.bool_)
    for part in found.parts[: each.limit]:
        h, w = part.inside.shape
        inside[part.top : part.top + h, part.left : part.left + w] |= part.inside
    sure = found.fine > found.threshold + SURE_SHARE * (LEVELS - found.threshold)
    outlined = grabcut(canvas.rgb, inside, sure, patch_px=canvas.patch_px(each.levels.shape))
    if outlined is None:
        return None
    parts = parts_of(each, found.fine, outlined, found.threshold, config)
    # The outline of colours runs halfway between the pixels, whatever the heat.
    return CutMap(fine=np.ones_like(found.fine), threshold=0.0, parts=parts) if parts else None


def _canvas(each: MapToCut) -> Canvas:
    assert each.canvas is not None, "the records still have their pixels"  # noqa: S101
    return each.canvas
