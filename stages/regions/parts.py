"""From a map to its parts once it is cut, and their order."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.contract.values import Levels, Plane, Sides
from phrasebox.stages.regions.colours import Canvas
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.learned_box import BoxContext
from phrasebox.stages.scores.score import Evidence

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMap:
    """The heat map of one object in levels, and everything else that its regions depend on.

    Attributes:
        levels: uint8 (grid_h, grid_w).
        shift_cells: See `HeatMap.shift_cells`.
        size_hw: Pixels of the image.
        limit: Most regions.
        usual_size: Of the object, for the rule `fitted`; see `FittedCut.usual_size`.
        context: Of the object, for a `BoxModel`; None without one.
        canvas: The image as the model saw it, for `config.needs_pixels`.
    """

    levels: Levels
    shift_cells: float
    size_hw: Sides
    limit: int
    usual_size: float = 0.0
    context: BoxContext | None = None
    canvas: Canvas | None = None

    @property
    def pixels(self) -> Canvas:
        """The canvas, for settings that need it."""
        if self.canvas is None:
            raise ValueError("expected a record that still has its pixels")
        return self.canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatPart:
    """One connected part of a cut map.

    Attributes:
        inside: bool (h, w), the samples of this part within its box.
        top, left: Where that box begins on the fine map, in samples.
        threshold: Heat in levels at its outline.
        evidence: See `measure`.
    """

    inside: Mask
    top: int
    left: int
    threshold: float
    evidence: Evidence

    @property
    def window(self) -> tuple[slice, slice]:
        """The box of the part, as an index of the fine map."""
        h, w = self.inside.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)


def parts_of(fine: Plane, inside: Mask, threshold: float, config: RegionsConfig) -> list[HeatPart]:
    """Return the 8-connected parts of a cut map, hottest first, without those that fall behind (`keep_share`).

    A part includes what it encloses, other parts, too: heat often follows the outline of large
    objects, and few objects have holes.

    `fine` is the fine map (fine_h, fine_w) in levels, as the threshold. `inside` are its
    samples above the threshold.
    """
    least = config.min_area_share * inside.size
    parts = []
    outlines, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for outline in outlines:
        left, top, w, h = cv2.boundingRect(outline)
        if w * h < least:
            continue
        mask = np.zeros((h, w), np.uint8)
        cv2.drawContours(mask, (outline,), 0, 1, cv2.FILLED, offset=(-left, -top))
        if cv2.countNonZero(mask) >= least:
            parts.append(part_of(fine, mask, (top, left), threshold))
    return _rank(parts, config)


def part_of(
    fine: Plane,
    mask: NDArray[np.uint8],
    corner: tuple[int, int],
    threshold: float,
) -> HeatPart:
    """Return the part of a fine map where a mask is 1, which begins at a row and a column of the map."""
    top, left = corner
    h, w = mask.shape
    heat = fine[top : top + h, left : left + w]
    evidence = measure(heat, mask, cv2.sumElems(fine)[0], fine.size, threshold)
    return HeatPart(inside=mask.view(np.bool_), top=top, left=left, threshold=threshold, evidence=evidence)


def measure(
    heat: Plane,
    mask: NDArray[np.uint8],
    total_heat: float,
    samples: int,
    threshold: float,
) -> Evidence:
    """Measure the values, in levels, where `mask` is 1, of a map of `samples` values that sum to `total_heat`."""
    size = cv2.countNonZero(mask)
    mean = cv2.mean(heat, mask)[0]
    outside = max(0.0, total_heat - mean * size)
    return Evidence(
        energy=mean * size / total_heat if total_heat > 0 else 0.0,
        area=size / samples,
        mean_inside=mean / LEVELS,
        mean_outside=outside / (samples - size) / LEVELS if size < samples else 0.0,
        peak=cv2.minMaxLoc(heat, mask)[1] / LEVELS,
        threshold=threshold / LEVELS,
    )


def _rank(parts: list[HeatPart], config: RegionsConfig) -> list[HeatPart]:
    """Return the parts with most heat first; of equals the larger one, then the upper one, then the left one."""

    def energy(part: HeatPart) -> float:
        return round(part.evidence.energy, 6)  # rounding hides the order of a sum over pixels

    least = config.keep_share * max(map(energy, parts), default=0.0)
    order = sorted(parts, key=lambda part: (-energy(part), -part.evidence.area, part.top, part.left))
    return [part for part in order if energy(part) >= least]
