"""Regions of one map at a time, step by step: the plain form of what `stages.regions` does for many maps together."""

from __future__ import annotations

import math
from functools import partial

import cv2
import numpy as np

from stages.contract.geometry import cell_to_px, px_to_cell
from stages.contract.levels import LEVELS, SMALLEST_SPREAD
from stages.contract.masks import encode_mask, mask_box_xywh_px
from stages.contract.records import HeatMap
from stages.regions.colours import RADIUS_PATCHES, Canvas
from stages.regions.components import refine_grid
from stages.regions.config import RegionsConfig
from stages.regions.cut import MapToCut, map_regions
from stages.regions.paint import Painted
from stages.regions.score import Evidence, rounded_score
from stages.regions.thresholds import cut

Found = list[tuple[Painted, Evidence]]


def regions_of_map(
    heat_map: HeatMap, size_hw: tuple[int, int], limit: int, config: RegionsConfig, canvas: Canvas | None = None
) -> Found:
    """The regions of a single map, by the package."""
    (found,) = map_regions([MapToCut(heat_map=heat_map, size_hw=size_hw, limit=limit, canvas=canvas)], config)
    return found


def plain_regions(each: MapToCut, config: RegionsConfig) -> Found:
    """The regions of a map, without `refine`."""
    heat_map, canvas = each.heat_map, each.canvas
    levels = None if heat_map.fault else plain_levels(heat_map.values)
    if levels is not None and config.smooth_patches:
        blurred = cv2.GaussianBlur(
            levels.astype(np.float32), (0, 0), config.smooth_patches, borderType=cv2.BORDER_REPLICATE
        )
        levels = plain_levels(blurred)
    if levels is None:
        return []
    if config.upsample == "guided" and canvas is not None:
        guide = canvas.guide(round(RADIUS_PATCHES * canvas.patch_px(levels.shape)))
        looked_at = plain_levels(np.maximum(guide(refine_grid(levels, guide.size_hw, heat_map.shift_cells)), 0))
        assert looked_at is not None
        fine = looked_at.astype(np.float32)
    else:
        fine = refine_grid(levels, None, heat_map.shift_cells)
        looked_at = levels if config.threshold_on == "grid" else np.rint(fine).astype(np.uint8)
    (threshold,) = cut(
        [looked_at], config.rule, share=config.threshold, quantile=config.quantile, fitted=None, usual=[]
    )
    parts = sorted(plain_parts(fine, threshold, heat_map, config), key=partial(_order, rank=config.rank))
    ranks = [rounded_score(config.rank, evidence) for *_, evidence in parts]
    found: Found = []
    for (inside, _, evidence), rank in zip(parts, ranks, strict=True):
        if len(found) < each.limit and rank >= config.keep_share * ranks[0]:
            painted = plain_paint(np.where(inside, 1, -1) * _distance(fine, threshold), each.size_hw)
            if painted is not None and painted.area_px >= config.min_area_px:
                found.append((painted, evidence))
    return found


def plain_levels(values: np.ndarray) -> np.ndarray | None:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high - low <= SMALLEST_SPREAD * max(abs(low), abs(high)):
        return None
    return np.floor((values.astype(np.float64) - low) / (high - low) * LEVELS + 0.5).astype(np.uint8)


def plain_parts(
    fine: np.ndarray, threshold: float, heat_map: HeatMap, config: RegionsConfig
) -> list[tuple[np.ndarray, tuple[int, int], Evidence]]:
    """Mask on the whole fine map, first row and column, and evidence of each part."""
    mask = (fine > threshold).astype(np.uint8)
    samples = fine.shape[0] / heat_map.values.shape[0]
    for operation, patches in ((cv2.MORPH_OPEN, config.open_patches), (cv2.MORPH_CLOSE, config.close_patches)):
        radius = round(patches * samples)
        if radius:
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
            wide = cv2.morphologyEx(np.pad(mask, 2 * radius, mode="edge"), operation, disc)
            mask = wide[2 * radius : -2 * radius, 2 * radius : -2 * radius]
    if config.fill_holes:
        outside = np.pad(mask, 1)
        cv2.floodFill(outside, None, (0, 0), 2, flags=4)
        mask = (outside[1:-1, 1:-1] != 2).astype(np.uint8)
    count, labels = cv2.connectedComponents(np.ascontiguousarray(mask), connectivity=8)
    total, parts = float(fine.sum(dtype=np.float64)), []
    for inside in (labels == label for label in range(1, count)):
        heat = fine[inside]
        if heat.size < config.min_area_share * inside.size:
            continue
        sum_inside, others = float(heat.sum(dtype=np.float64)), inside.size - heat.size
        evidence = Evidence(
            energy=sum_inside / total if total > 0 else 0.0,
            area=heat.size / inside.size,
            mean_inside=sum_inside / heat.size / LEVELS,
            mean_outside=max(0.0, total - sum_inside) / others / LEVELS if others else 0.0,
            peak=float(heat.max()) / LEVELS,
            threshold=threshold / LEVELS,
            similarity=heat_map.similarity,
        )
        parts.append((inside, (int(inside.any(1).argmax()), int(inside.any(0).argmax())), evidence))
    return parts


def _order(part: tuple[np.ndarray, tuple[int, int], Evidence], rank: str) -> tuple[float, ...]:
    inside, first, evidence = part
    return (-rounded_score(rank, evidence), -int(inside.sum()), *first)


def _distance(fine: np.ndarray, threshold: float) -> np.ndarray:
    return np.maximum(np.abs(fine - np.float32(threshold)), np.float32(1e-3))


def plain_paint(field: np.ndarray, size_hw: tuple[int, int]) -> Painted | None:
    """The mask of a field over the whole image: each column of pixels by itself."""
    (height_px, width_px), (h, w) = size_hw, field.shape
    field = field.astype(np.float32)
    mask = np.zeros(size_hw, dtype=bool)
    for x in range(width_px):
        position = min(max(px_to_cell(x + 0.5, side_px=width_px, cells=w), 0.0), w - 1.0)
        left = int(position)
        slope = field[:, min(left + 1, w - 1)] - field[:, left]
        column = slope * np.float32(position - left) + field[:, left]
        for first in range(h):
            if column[first] > 0 and (first == 0 or column[first - 1] <= 0):
                last = first
                while last + 1 < h and column[last + 1] > 0:
                    last += 1
                start = math.floor(cell_to_px(_crossing(column, first - 1), side_px=height_px, cells=h) - 0.5) + 1
                stop = math.ceil(cell_to_px(_crossing(column, last), side_px=height_px, cells=h) - 0.5)
                mask[max(start, 0) : min(stop, height_px), x] = True
    if not mask.any():
        return None
    return Painted(mask=encode_mask(mask), box_xywh_px=mask_box_xywh_px(mask), area_px=int(mask.sum()))


def _crossing(column: np.ndarray, above: int) -> float:
    """Where the column changes its sign below a sample; beyond its ends it goes on."""
    if above < 0:
        return -1e9
    if above == len(column) - 1:
        return 1e9
    here, there = float(column[above]), float(column[above + 1])
    return above + here / (here - there)
