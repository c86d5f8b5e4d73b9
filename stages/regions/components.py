"""From the explainer's map to whole levels on the grid, to a finer map of the same surface, and to its parts once cut.

A heat map has few cells (14 x 14 for a 224 px ViT-B/16) and an image has many pixels. Between the centres of the cells
the map is bilinear, beyond the outermost centres it is constant. This is the convention of `cv2.resize` (half-pixel
centres, `align_corners=False`), in which a cell covers its exact share of the image. The surface is never drawn at the
size of the image. Components are found on a *fine map* with an odd number of samples per cell and direction: the
centres of the cells are then among the samples, and bilinear interpolation between the samples is exactly the surface
again, at any image size. Radii are in samples, areas are shares of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.geometry import resize_shifted
from stages.contract.levels import LEVELS, quantise_each
from stages.regions.score import Evidence

FINE_SIDE: Final = 112
"""The fine map has at most this many samples on its longer side, unless the grid has more cells.

For a 14 x 14 grid that is 7 samples per cell. The size does not limit the precision of contours (see the module), only
that of cleaning and of the line between two touching components."""


def smooth(levels: NDArray[np.uint8], sigma_patches: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Gaussian blur of maps on their grid, then whole levels again.

    Args:
        levels: uint8 (maps, grid_h, grid_w).
        sigma_patches: Standard deviation in cells, above 0. Beyond the border the outermost cells continue.

    Returns:
        As `quantise_each`.
    """
    maps, h, w = levels.shape
    # One map below the other, so far apart that none reaches into the next: each row is blurred as it was alone.
    margin = math.ceil(4 * sigma_patches) + 1
    rows = np.clip(np.arange(-margin, h + margin), 0, h - 1)
    below = levels[:, rows].reshape(-1, w).astype(np.float32)
    blurred = cv2.GaussianBlur(below, (0, 0), sigma_patches, borderType=cv2.BORDER_REPLICATE)
    return quantise_each(blurred.reshape(maps, -1, w)[:, margin : margin + h])


def samples_per_cell(grid_hw: tuple[int, int]) -> int:
    """Odd number of samples per cell and direction that keeps the fine map within `FINE_SIDE`."""
    samples = max(1, FINE_SIDE // max(grid_hw))
    return samples - 1 + samples % 2


def refine_grid(
    levels: NDArray[np.uint8], fine_hw: tuple[int, int] | None = None, shift_cells: float = 0.0
) -> NDArray[np.float32]:
    """The fine map, in levels: float32 (grid_h * n, grid_w * n) with n = `samples_per_cell`, or `fine_hw`.

    fine_hw: At least as many samples as cells. With another number than n the map between the samples is no longer
        exactly the surface.
    shift_cells: See `HeatMap.shift_cells`. The fine map covers the image, and so is drawn where the values lie. With a
        shift the centres of the cells are no longer among the samples.
    """
    h, w = levels.shape
    samples = samples_per_cell((h, w))
    fine_h, fine_w = (h * samples, w * samples) if fine_hw is None else fine_hw
    if shift_cells:
        return resize_shifted(levels.astype(np.float32), (fine_h, fine_w), shift_cells)
    fine: NDArray[np.float32] = cv2.resize(levels.astype(np.float32), (fine_w, fine_h), interpolation=cv2.INTER_LINEAR)
    return fine


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One connected part of the cut map.

    Attributes:
        inside: bool (h, w), the samples of this part within its own box.
        top: Where that box begins on the fine map, in samples, as `left`.
        left: See `top`.
        samples: How many are inside.
        evidence: What is measured.
    """

    inside: NDArray[np.bool_]
    top: int
    left: int
    samples: int
    evidence: Evidence


def clean(inside: NDArray[np.bool_], *, open_radius: int, close_radius: int) -> NDArray[np.bool_]:
    """Open, then close the mask by discs of these radii in samples.

    Opening removes specks and bridges thinner than the disc, closing fills gaps and bays that the disc does not fit
    into; radius 0 leaves the step out. Beyond the border the mask continues as it ends there.
    """
    mask = inside.view(np.uint8)
    for operation, radius in ((cv2.MORPH_OPEN, open_radius), (cv2.MORPH_CLOSE, close_radius)):
        if radius:
            mask = _morphology(mask, operation, radius)
    return mask.view(np.bool_)


def components(
    fine: NDArray[np.float32],
    inside: NDArray[np.bool_],
    *,
    threshold: float,
    similarity: float,
    min_area_share: float,
    fill_holes: bool,
) -> list[Component]:
    """The 8-connected parts of `inside` that cover at least `min_area_share` of the image, unordered.

    fine: float32 (h, w), heat in levels. inside: bool (h, w). threshold: in levels. fill_holes: a part includes what it
    encloses, other parts, too: all that its outline keeps from being 4-connected to the border.
    """
    total_heat = float(np.add.reduce(fine, axis=None, dtype=np.float64))
    least = min_area_share * inside.size
    found = []
    for own, top, left, samples in _outlined(inside, least) if fill_holes else _labelled(inside, least):
        h, w = own.shape
        heat = fine[top : top + h, left : left + w][own]
        evidence = _measure(heat, total_heat, inside.size, threshold, similarity)
        found.append(Component(inside=own, top=top, left=left, samples=samples, evidence=evidence))
    return found


def _outlined(inside: NDArray[np.bool_], least: float) -> Iterator[tuple[NDArray[np.bool_], int, int, int]]:
    """The parts with what they enclose, if they have `least` samples: mask in its box, top, left, samples."""
    outlines, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for outline in reversed(outlines):  # OpenCV begins with the lowest
        left, top, w, h = cv2.boundingRect(outline)
        if w * h < least:
            continue
        own = np.zeros((h, w), np.uint8)
        cv2.drawContours(own, (outline,), 0, 1, cv2.FILLED, offset=(-left, -top))
        samples = cv2.countNonZero(own)
        if samples >= least:
            yield own.view(np.bool_), top, left, samples


def _labelled(inside: NDArray[np.bool_], least: float) -> Iterator[tuple[NDArray[np.bool_], int, int, int]]:
    """The parts as they are; see `_outlined`."""
    # OpenCV 5 is three times faster with 16-bit labels. At most half of the samples, rounded up, can be parts.
    label_type = cv2.CV_16U if inside.size < 2 * np.iinfo(np.uint16).max else cv2.CV_32S
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.view(np.uint8), connectivity=8, ltype=label_type)
    for label in range(1, count):
        left, top, w, h, samples = stats[label].tolist()
        if samples >= least:
            yield labels[top : top + h, left : left + w] == label, top, left, samples


def ranked(found: list[Component], rank: Callable[[Evidence], float], keep_share: float) -> list[Component]:
    """Best first, without those whose rank is below `keep_share` of the best one's.

    Of equals, the larger one comes first, then the upper one, then the left one.
    """
    ranks = [rank(part.evidence) for part in found]
    least = keep_share * max(ranks, default=0.0)
    order = sorted(
        (-own, -part.samples, part.top, part.left, number)
        for number, (part, own) in enumerate(zip(found, ranks, strict=True))
        if own >= least
    )
    return [found[number] for *_, number in order]


def _measure(
    heat: NDArray[np.float32], total_heat: float, samples: int, threshold: float, similarity: float
) -> Evidence:
    """The evidence of a part with these values, in levels, of a map of `samples` values that sum to `total_heat`."""
    inside = float(np.add.reduce(heat, dtype=np.float64))
    others = samples - heat.size
    return Evidence(
        energy=inside / total_heat if total_heat > 0 else 0.0,
        area=heat.size / samples,
        mean_inside=inside / heat.size / LEVELS,
        mean_outside=max(0.0, total_heat - inside) / others / LEVELS if others else 0.0,
        peak=float(np.maximum.reduce(heat)) / LEVELS,
        threshold=threshold / LEVELS,
        similarity=similarity,
    )


def _morphology(mask: NDArray[np.uint8], operation: int, radius: int) -> NDArray[np.uint8]:
    """Opening or closing by a disc. OpenCV's border would count as one of the sides, so the mask's edge is repeated."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    margin = 2 * radius
    around = cv2.copyMakeBorder(mask, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    changed = cv2.morphologyEx(around, operation, disc)
    inner: NDArray[np.uint8] = changed[margin:-margin, margin:-margin]
    return np.ascontiguousarray(inner)
