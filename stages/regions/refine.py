"""From a cut heat map to the thing's own outline, by the colours of the image: GrabCut.

A heat map knows where a thing is but not where it ends: its cells are some 10 px wide on the canvas that the
model sees. GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) fits a mixture of colours to what the map
holds for the thing and another to its surroundings, and looks for the cheapest outline between them, which
runs along edges of the image. Here the map decides where that outline may run:

    heat in the upper part of what lies above the threshold   surely the thing
    the rest of the chosen parts                              probably the thing
    within REACH_PATCHES around them                          probably not
    farther away                                              surely not

All of this happens on the canvas (`canvas.py`), never at the size of the image.
"""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

SURE_SHARE: Final = 0.7
"""Heat that reaches this share of the way from the threshold to the hottest is surely the thing."""

REACH_PATCHES: Final = 1.5
"""How far, in patches, the outline may go beyond the cut."""

FRAME_PATCHES: Final = 2.0
"""How much of the surroundings beyond the reach, in patches, the colours outside are learnt from. GrabCut sees
nothing else of the image, which saves a third of its cost and loses nothing."""

FRAME_PX: Final = 14_400
"""Most pixels that GrabCut is given: larger frames, which hold large things, are shrunk."""

ROUNDS: Final = 1
"""Rounds of fitting colours and cutting. Two are no better (mask IoU .763 and .761) and cost half as much again."""

MOST_CHANGE: Final = 3.0
"""An outline whose area is this many times larger or smaller than the cut is not believed."""

COLOURS: Final = 5
"""Gaussians in each of GrabCut's two mixtures, OpenCV's number; fewer pixels than that cannot be fitted."""


def grabcut(
    rgb: NDArray[np.uint8], inside: NDArray[np.bool_], sure: NDArray[np.bool_], patch_px: float
) -> NDArray[np.bool_] | None:
    """The outline by colour of what a heat map was cut to, bool (H, W).

    rgb: uint8 (H, W, 3). inside: bool (H, W), the chosen parts of the cut map, at least one pixel. sure: bool
    (H, W), what of it is beyond doubt. patch_px: side of a cell of the heat map in pixels of `rgb`.

    None where colours cannot say anything: too few pixels on one side to fit them, or an area that
    is not `MOST_CHANGE`'s.
    """
    near = _grown(inside, round(REACH_PATCHES * patch_px))
    label = np.where(near, np.uint8(cv2.GC_PR_BGD), np.uint8(cv2.GC_BGD))
    label[inside] = cv2.GC_PR_FGD
    label[inside & sure] = cv2.GC_FGD
    frame = _frame(near, round(FRAME_PATCHES * patch_px))
    part = np.ascontiguousarray(label[frame])
    cut = _cut(np.ascontiguousarray(rgb[frame]), part)
    if cut is None:
        return None
    refined = np.zeros_like(inside)
    refined[frame] = cut
    thing = int(inside.sum())
    area = int(refined.sum())
    return refined if thing <= MOST_CHANGE * area and area <= MOST_CHANGE * thing else None


def _cut(rgb: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """GrabCut of uint8 (h, w, 3) from labels (h, w), on at most `FRAME_PX` pixels -> bool (h, w).

    None if either side has too few pixels to fit its colours.
    """
    height, width = label.shape
    scale = math.sqrt(FRAME_PX / label.size)
    if scale < 1:
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    probably = int((label & 1).sum())  # GC_FGD and GC_PR_FGD are odd
    if min(probably, label.size - probably) < COLOURS:
        return None
    mixtures = np.zeros((2, 1, 13 * COLOURS))
    cv2.setRNGSeed(0)  # the colours' first guess is drawn at random: the same one for each map
    cv2.grabCut(rgb, label, None, mixtures[0], mixtures[1], ROUNDS, cv2.GC_INIT_WITH_MASK)
    cut = (label & 1).astype(np.uint8)
    if scale < 1:
        sides: NDArray[np.float32] = cv2.resize(cut.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        return sides > 0.5
    return cut > 0


def _grown(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The mask and what lies within `radius` pixels of it."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    grown: NDArray[np.uint8] = cv2.dilate(mask.view(np.uint8), disc)
    return grown.view(np.bool_)


def _frame(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the mask's box with a margin, within the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )
