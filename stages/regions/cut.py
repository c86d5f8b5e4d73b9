"""From one heat map to its regions: where the map is cut, the parts it falls into, and which parts are kept.

The rules work on whole levels 0 .. 255 and answer k + 0.5 with k whole: a value is inside if its level is greater than
k. Between two levels, no flat part of the map can lie exactly on the threshold, where the rounding noise of the
interpolation would draw its pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS, quantise
from stages.contract.records import HeatMap
from stages.regions.colours import RADIUS_PATCHES, SURE_SHARE, Canvas, grabcut
from stages.regions.components import Component, clean, components, ranked, refine_grid, smooth
from stages.regions.config import RegionsConfig, Rule
from stages.regions.paint import Painted, component_field, flat_field, paint
from stages.regions.score import Evidence, rounded_score

ROUNDING: Final = 1e-9
"""Added before rounding down, so that 0.6 of 255 is 153 and not 152."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A heat map with the parts it falls into.

    Attributes:
        fine: float32 (fine_h, fine_w), heat in levels, see `components.refine_grid`.
        threshold: In levels.
        parts: Best first.
    """

    fine: NDArray[np.float32]
    threshold: float
    parts: list[Component]


def map_regions(
    heat_map: HeatMap, size_hw: tuple[int, int], limit: int, config: RegionsConfig, canvas: Canvas | None = None
) -> list[tuple[Painted, Evidence]]:
    """The regions of one heat map.

    Args:
        heat_map: The map of one phrase.
        size_hw: Pixels of the image.
        limit: Most regions.
        config: How to cut.
        canvas: The image as the model saw it. Unused unless `config.needs_pixels`.

    Returns:
        Masks and what is known of each, best first by `config.rank`, without those that fall behind the best
        (`keep_share`) or are too small. Regions of one map do not overlap.

    Raises:
        ValueError: The canvas is needed and missing.
    """
    refined = None if config.refine == "none" else _refined(heat_map, limit, config, _given(canvas, config))
    found = refined or cut_map(heat_map, config, canvas)
    if found is None:
        return []
    regions: list[tuple[Painted, Evidence]] = []
    for part in _kept(found.parts, config):
        if len(regions) == limit:
            break
        if refined is None:
            field = component_field(found.fine, found.threshold, part)
        else:
            field = flat_field(part, (found.fine.shape[0], found.fine.shape[1]))
        painted = paint(field, size_hw)
        if painted is not None and painted.area_px >= config.min_area_px:
            regions.append((painted, part.evidence))
    return regions


def surface(heat_map: HeatMap, config: RegionsConfig, canvas: Canvas | None = None) -> NDArray[np.uint8] | None:
    """The map that regions are cut from. It is bilinear between its values.

    Args:
        heat_map: The explainer's map.
        config: How to smooth and to guide it.
        canvas: Unused where `config.upsample` is "linear". A map on a canvas with fewer pixels than the map has cells
            is not guided.

    Returns:
        Levels, uint8 (grid_h, grid_w), or (H, W) of the canvas if the map is guided. None if there is nothing to cut:
        the map has a fault, is constant or is not finite.

    Raises:
        ValueError: The canvas is needed and missing.
    """
    levels = None if heat_map.fault or not math.isfinite(heat_map.similarity) else quantise(heat_map.values)
    levels = None if levels is None else smooth(levels, config.smooth_patches)
    if levels is None or config.upsample == "linear":
        return levels
    canvas = _given(canvas, config)
    if not canvas.holds(levels.shape):
        return levels
    guide = canvas.guide(round(RADIUS_PATCHES * canvas.patch_px(levels.shape)))
    guided = quantise(np.maximum(guide(refine_grid(levels, canvas.size_hw, heat_map.shift_cells)), 0))
    return levels if guided is None else guided


def cut_map(
    heat_map: HeatMap, config: RegionsConfig, canvas: Canvas | None = None, *, on_canvas: bool = False
) -> CutMap | None:
    """Threshold, clean, split and rank one heat map; None if there is nothing to cut, see `surface`.

    on_canvas: Give the fine map the pixels of the canvas, which are at least as many as the cells. A guided map has
        them anyway; others have `components.samples_per_cell` samples per cell.
    """
    levels = surface(heat_map, config, canvas)
    if levels is None:
        return None
    guided = levels.shape != heat_map.values.shape
    if guided:
        fine = levels.astype(np.float32)
    else:
        size_hw = canvas.size_hw if on_canvas and canvas is not None else None
        fine = refine_grid(levels, size_hw, heat_map.shift_cells)
    looked_at = levels if guided or config.threshold_on == "grid" else np.rint(fine).astype(np.uint8)
    threshold = cut(looked_at, config.rule, share=config.threshold, quantile=config.quantile)
    return CutMap(fine=fine, threshold=threshold, parts=_parts(fine, fine > threshold, threshold, heat_map, config))


def _refined(heat_map: HeatMap, limit: int, config: RegionsConfig, canvas: Canvas) -> CutMap | None:
    """The cut map on the canvas, with the outlines of its best `limit` parts drawn by colour.

    None if nothing is cut, and where the colours say nothing, see `colours.grabcut`.
    """
    if not canvas.holds(heat_map.values.shape):
        return None
    found = cut_map(heat_map, config, canvas, on_canvas=True)
    if found is None or not found.parts:
        return None
    inside = np.zeros(found.fine.shape, dtype=np.bool_)
    for part in _kept(found.parts, config)[:limit]:
        h, w = part.inside.shape
        inside[part.top : part.top + h, part.left : part.left + w] |= part.inside
    sure = found.fine > found.threshold + SURE_SHARE * (LEVELS - found.threshold)
    outlined = grabcut(canvas.rgb, inside, sure, patch_px=canvas.patch_px(heat_map.values.shape))
    if outlined is None:
        return None
    parts = _parts(found.fine, outlined, found.threshold, heat_map, config)
    return replace(found, parts=parts) if parts else None


def _given(canvas: Canvas | None, config: RegionsConfig) -> Canvas:
    if canvas is None:
        raise ValueError(
            f"expected the image's pixels for refine={config.refine!r} and upsample={config.upsample!r}, got none"
        )
    return canvas


def _parts(
    fine: NDArray[np.float32], inside: NDArray[np.bool_], threshold: float, heat_map: HeatMap, config: RegionsConfig
) -> list[Component]:
    """The parts of `inside`, a mask on the fine map, after cleaning, best first."""
    samples = fine.shape[0] / heat_map.values.shape[0]
    cleaned = clean(
        inside,
        open_radius=round(config.open_patches * samples),
        close_radius=round(config.close_patches * samples),
        fill_holes=config.fill_holes,
    )
    found = components(
        fine, cleaned, threshold=threshold, similarity=heat_map.similarity, min_area_share=config.min_area_share
    )
    return ranked(found, partial(rounded_score, config.rank))


def _kept(parts: Sequence[Component], config: RegionsConfig) -> list[Component]:
    """Ranked parts without those that fall behind the best."""
    ranks = [rounded_score(config.rank, part.evidence) for part in parts]
    return [part for part, rank in zip(parts, ranks, strict=True) if rank >= config.keep_share * ranks[0]]


def cut(levels: NDArray[np.uint8], rule: Rule, *, share: float, quantile: float) -> float:
    """The threshold of a map by one of the rules, in levels (k + 0.5).

    levels: uint8, any shape. `share` is for "fixed" only, `quantile` for "quantile" only.
    """
    match rule:
        case "mean":
            return mean_cut(levels)
        case "otsu":
            return otsu_cut(levels)
        case "fixed":
            return fixed_cut(share)
        case "quantile":
            return quantile_cut(levels, quantile)


def mean_cut(levels: NDArray[np.uint8]) -> float:
    """Inside is what lies above the map's mean: Chefer et al.'s segmentation protocol (ICCV 2021)."""
    return math.floor(float(levels.mean(dtype=np.float64))) + 0.5


def fixed_cut(share: float) -> float:
    """Inside is what lies above a share (0 .. 1) of the highest value, once the lowest is 0."""
    return math.floor(share * LEVELS + ROUNDING) + 0.5


def quantile_cut(levels: NDArray[np.uint8], quantile: float) -> float:
    """Inside is what lies above the value at a quantile (0 .. 1) of the map's values.

    The quantile is a value of the map (the lower of two neighbours). On maps with ties fewer than `1 - quantile` of the
    values may lie above it, and none if the quantile is the highest value.
    """
    ordered = np.sort(levels, axis=None)
    return float(ordered[math.floor(quantile * (ordered.size - 1) + ROUNDING)]) + 0.5


def otsu_cut(levels: NDArray[np.uint8]) -> float:
    """Otsu's threshold: the largest variance between the two classes (IEEE Trans. SMC 9, 1979).

    All cuts within a gap of the histogram have the same variance. The middle one is taken, halfway between the classes;
    OpenCV takes the lowest, which on an almost empty map keeps everything above zero. Of two equally good gaps the
    lower one is taken. Computed on whole counts, so that the answer is the same on every machine.
    """
    counts = np.bincount(levels.ravel(), minlength=LEVELS + 1)
    below = np.cumsum(counts)[:-1].astype(np.float64)
    sum_below = np.cumsum(counts * np.arange(LEVELS + 1))
    total, sum_total = float(levels.size), float(sum_below[-1])
    above = total - below
    split = (below > 0) & (above > 0)
    if not split.any():  # a single level: nothing lies above it
        return float(levels.flat[0]) + 0.5
    # n0 n1 (m1 - m0)^2, written with sums so that equal counts give equal values to the last bit
    spread = (sum_total * below - total * sum_below[:-1]) ** 2
    variance = np.divide(spread, below * above, out=np.zeros_like(spread), where=split)
    lowest = int(variance.argmax())
    highest = int(np.searchsorted(below, below[lowest], side="right")) - 1
    return float((lowest + highest) // 2) + 0.5
