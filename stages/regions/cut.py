"""From heat maps to regions: where each map is cut, the parts it falls into, and which parts are kept.

Many maps are cut together: they are so small that the time of most steps is that of the call. No region depends on
which other maps are cut with its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS, levels_of, quantise
from stages.contract.records import HeatMap
from stages.regions.colours import RADIUS_PATCHES, SURE_SHARE, Canvas, grabcut
from stages.regions.components import Component, clean, components, ranked, refine_grid, smooth
from stages.regions.config import RegionsConfig
from stages.regions.fields import SignedField, component_field, flat_field
from stages.regions.fitted import FittedCut
from stages.regions.paint import Painted, paint
from stages.regions.score import Evidence, rounded_score
from stages.regions.thresholds import cut

Levels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A heat map with the parts it falls into.

    Attributes:
        fine: float32 (fine_h, fine_w), heat in levels, see `components.refine_grid`.
        threshold: In levels.
        parts: Best first by `config.rank`, without those that fall behind the best (`keep_share`).
        by_colour: Whether the parts' outlines are those of colours, see `colours.grabcut`.
    """

    fine: NDArray[np.float32]
    threshold: float
    parts: list[Component]
    by_colour: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MapToCut:
    """A heat map, with what its regions also depend on.

    Attributes:
        heat_map: Of one phrase.
        size_hw: Pixels of the image.
        limit: Most regions.
        usual: For the rule `fitted`: the usual size of what the map is of, see `FittedCut.usual_size`.
        canvas: The image as the model saw it. Unused unless `config.needs_pixels`.
    """

    heat_map: HeatMap
    size_hw: tuple[int, int]
    limit: int
    usual: float = 0.0
    canvas: Canvas | None = None


def map_regions(
    maps: Sequence[MapToCut], config: RegionsConfig, fitted: FittedCut | None = None
) -> list[list[tuple[Painted, Evidence]]]:
    """The regions of each map.

    Args:
        maps: Of one model.
        config: How to cut.
        fitted: For the rule `fitted`.

    Returns:
        Masks and what is known of each, best first by `config.rank`, without those that fall behind the best
        (`keep_share`) or are too small. Regions of one map do not overlap.

    Raises:
        ValueError: A canvas is needed and missing.
    """
    found: list[CutMap | None] = [None] * len(maps)
    if config.refine != "none":
        found = [_refined(each, config, _given(each.canvas, config), fitted) for each in maps]
    others = [number for number, each in enumerate(found) if each is None]
    for number, each in zip(others, cut_maps([maps[number] for number in others], config, fitted), strict=True):
        found[number] = each
    waiting = [[] if each is None else each.parts for each in found]
    regions: list[list[tuple[Painted, Evidence]]] = [[] for _ in maps]
    # Where a part is too small in pixels, the next best takes its place.
    while True:
        chosen: list[tuple[int, CutMap, Component]] = []
        for number, each in enumerate(found):
            missing = maps[number].limit - len(regions[number])
            if each is not None and missing > 0:
                chosen += [(number, each, part) for part in waiting[number][:missing]]
                waiting[number] = waiting[number][missing:]
        if not chosen:
            return regions
        masks = paint([_field(each, part) for _, each, part in chosen], [maps[number].size_hw for number, *_ in chosen])
        for (number, _, part), painted in zip(chosen, masks, strict=True):
            if painted is not None and painted.area_px >= config.min_area_px:
                regions[number].append((painted, part.evidence))


def _field(found: CutMap, part: Component) -> SignedField:
    if found.by_colour:
        return flat_field(part, (found.fine.shape[0], found.fine.shape[1]))
    return component_field(found.fine, found.threshold, part)


def surfaces(maps: Sequence[MapToCut], config: RegionsConfig) -> list[Levels | None]:
    """The maps that regions are cut from. They are bilinear between their values.

    A map on a canvas with fewer pixels than the map has cells is not guided.

    Returns:
        For each map its levels, uint8 (grid_h, grid_w), or (H, W) of the canvas if the map is guided. None if there is
        nothing to cut: the map has a fault, is constant or is not finite.

    Raises:
        ValueError: A canvas is needed and missing.
    """
    blur = partial(smooth, sigma_patches=config.smooth_patches) if config.smooth_patches else None
    heat = (each.heat_map for each in maps)
    on_grid = levels_of([one.values if not one.fault and math.isfinite(one.similarity) else None for one in heat], blur)
    if config.upsample == "linear":
        return on_grid
    return [
        None if levels is None else _guided(levels, each.heat_map.shift_cells, _given(each.canvas, config))
        for each, levels in zip(maps, on_grid, strict=True)
    ]


def _guided(levels: Levels, shift_cells: float, canvas: Canvas) -> Levels:
    """Levels on the canvas; as they are where the canvas is too small."""
    if not canvas.holds(levels.shape):
        return levels
    guide = canvas.guide(round(RADIUS_PATCHES * canvas.patch_px(levels.shape)))
    guided = quantise(np.maximum(guide(refine_grid(levels, guide.size_hw, shift_cells)), 0))
    return levels if guided is None else guided


def cut_maps(
    maps: Sequence[MapToCut], config: RegionsConfig, fitted: FittedCut | None = None, *, on_canvas: bool = False
) -> list[CutMap | None]:
    """Threshold, clean, split and rank each heat map; None if there is nothing to cut, see `surfaces`.

    fitted: See `map_regions`.
    on_canvas: Give the fine maps the pixels of the canvas, which are at least as many as the cells. A guided map has
        them anyway; others have `components.samples_per_cell` samples per cell.
    """
    found: list[CutMap | None] = [None] * len(maps)
    fine: dict[int, NDArray[np.float32]] = {}
    looked_at: dict[tuple[int, ...], dict[int, Levels]] = {}
    for number, (each, levels) in enumerate(zip(maps, surfaces(maps, config), strict=True)):
        if levels is None:
            continue
        if levels.shape != each.heat_map.values.shape:  # guided
            fine[number], seen = levels.astype(np.float32), levels
        else:
            size_hw = each.canvas.size_hw if on_canvas and each.canvas is not None else None
            fine[number] = refine_grid(levels, size_hw, each.heat_map.shift_cells)
            seen = levels if config.threshold_on == "grid" else np.rint(fine[number]).astype(np.uint8)
        looked_at.setdefault(seen.shape, {})[number] = seen
    for alike in looked_at.values():
        thresholds = cut(
            [*alike.values()],
            config.rule,
            share=config.threshold,
            quantile=config.quantile,
            fitted=fitted,
            usual=[maps[number].usual for number in alike],
        )
        for number, threshold in zip(alike, thresholds, strict=True):
            own = fine[number]
            parts = _parts(own, own > threshold, threshold, maps[number].heat_map, config)
            found[number] = CutMap(fine=own, threshold=threshold, parts=parts)
    return found


def _refined(each: MapToCut, config: RegionsConfig, canvas: Canvas, fitted: FittedCut | None) -> CutMap | None:
    """The cut map on the canvas, with the outlines of the parts that are wanted drawn by colour.

    None if nothing is cut, and where the colours say nothing, see `colours.grabcut`.
    """
    heat_map = each.heat_map
    if not canvas.holds(heat_map.values.shape):
        return None
    (found,) = cut_maps([each], config, fitted, on_canvas=True)
    if found is None or not found.parts:
        return None
    inside = np.zeros(found.fine.shape, dtype=np.bool_)
    for part in found.parts[: each.limit]:
        h, w = part.inside.shape
        inside[part.top : part.top + h, part.left : part.left + w] |= part.inside
    sure = found.fine > found.threshold + SURE_SHARE * (LEVELS - found.threshold)
    outlined = grabcut(canvas.rgb, inside, sure, patch_px=canvas.patch_px(heat_map.values.shape))
    if outlined is None:
        return None
    parts = _parts(found.fine, outlined, found.threshold, heat_map, config)
    return replace(found, parts=parts, by_colour=True) if parts else None


def _given(canvas: Canvas | None, config: RegionsConfig) -> Canvas:
    if canvas is None:
        raise ValueError(
            f"expected the image's pixels for refine={config.refine!r} and upsample={config.upsample!r}, got none"
        )
    return canvas


def _parts(
    fine: NDArray[np.float32], inside: NDArray[np.bool_], threshold: float, heat_map: HeatMap, config: RegionsConfig
) -> list[Component]:
    """The parts of `inside`, a mask on the fine map, after cleaning, best first, without those that fall behind."""
    samples = fine.shape[0] / heat_map.values.shape[0]
    cleaned = clean(
        inside,
        open_radius=round(config.open_patches * samples),
        close_radius=round(config.close_patches * samples),
    )
    found = components(
        fine,
        cleaned,
        threshold=threshold,
        similarity=heat_map.similarity,
        min_area_share=config.min_area_share,
        fill_holes=config.fill_holes,
    )
    return found if len(found) < 2 else ranked(found, partial(rounded_score, config.rank), config.keep_share)
