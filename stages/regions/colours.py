"""Outlines by the colours of an image: the guided filter, and GrabCut.

A heat map shows where an object is but not where it ends: its cells are some 10 px wide on the
canvas, the image as the model sees it. Everything here happens on the canvas, never at the size
of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from phrasebox.stages.contract.geometry import scaled_sides
from phrasebox.stages.contract.values import Plane, Rgb, Sides

CANVAS_SIDE: Final = 320
"""Most pixels of the canvas on its longer side. The cost grows with the area; the square inputs
of the usual models (224 px and less) stay as they are."""

RADIUS_PATCHES: Final = 2.0
"""Half the side of the guide's window in patches: wide enough to hold a cell's surroundings on
both sides of an edge. On drawn scenes pointing is 0.936 to 0.947 from 1.5 to 4 patches (606
phrases)."""

EPSILON: Final = 1e-3
"""Variance of a colour channel (0 .. 1) that counts as noise: smaller changes of colour guide
nothing."""

RADIUS_SHRUNK_PX: Final = 4
"""Least half side of the window in the shrunk image that the guide is fitted to: the ratio that
He and Sun recommend. With `RADIUS_PATCHES` a cell of the map then still has two pixels a
side."""

MOST_SHRUNK: Final = 4
"""Most times that the image is shrunk. More would save little, since what is done for all
pixels remains."""

SURE_SHARE: Final = (
    0.7  # Heat that reaches this share of the way from the threshold to the highest is surely the object
)

REACH_PATCHES: Final = 1.5  # Farthest distance of GrabCut's outline from the cut, in patches

FRAME_PATCHES: Final = 2.0
"""Width of the surroundings beyond the reach, in patches, that show GrabCut the colours
outside. It sees nothing else of the image, which saves a third of its cost and loses
nothing."""

FRAME_PX: Final = (
    14_400  # Most pixels that GrabCut gets: larger frames, which hold large objects, are shrunk
)

ROUNDS: Final = 1
"""Rounds of fitting colours and cutting. Two are no better (mask IoU 0.763 and 0.761) and cost
half as much again."""

MOST_CHANGE: Final = (
    3.0  # Most times that an outline may be larger or smaller than the cut; else it is wrong
)

COLOURS: Final = 5
"""Gaussians in each of GrabCut's two mixtures, OpenCV's number; they cannot be fitted to fewer
pixels."""


class Canvas:
    """One image, for the maps of all its phrases.

    Attributes:
        rgb: uint8 (H, W, 3), the whole image as the model saw it, with at most `CANVAS_SIDE`
            pixels a side.
    """

    def __init__(self, rgb: Rgb) -> None:
        height, width = rgb.shape[:2]
        scale = CANVAS_SIDE / max(height, width)
        if scale < 1:
            size = scaled_sides((width, height), scale)
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        self.rgb = rgb
        self._guides: dict[int, Guide] = {}

    @property
    def size_hw(self) -> Sides:
        """In pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    def patch_px(self, grid_hw: tuple[int, ...]) -> float:
        """Return the height of a cell of a heat map, in pixels of the canvas."""
        return self.size_hw[0] / grid_hw[0]

    def guide(self, grid_hw: tuple[int, ...]) -> Guide:
        """Return the guided filter of its colours for a grid, made once."""
        radius_px = round(RADIUS_PATCHES * self.patch_px(grid_hw))
        if radius_px not in self._guides:
            step = max(1, min(MOST_SHRUNK, radius_px // RADIUS_SHRUNK_PX))
            self._guides[radius_px] = Guide(self.rgb, radius_px, step=step)
        return self._guides[radius_px]


class Guide:
    """Fills heat in between the cells of the grid along the edges of the image.

    Interpolation lets the heat of a thin or small object run over its edges. The guided filter
    (He, Sun and Tang, "Guided Image Filtering", IEEE TPAMI 35, 2013) fits the interpolated heat
    q in each window w of the image. The model is linear in its colours I. Heat at a pixel is
    the mean over all windows around it:

        a_w = (cov_w(I) + EPSILON)^-1 cov_w(I, q)      b_w = mean_w(q) - a_w . mean_w(I)
        guided_i = mean(a_w) . I_i + mean(b_w)         over all w that hold i

    Its cost does not depend on the window. a and b change slowly, so they are computed on a
    shrunk image and interpolated (He and Sun, "Fast Guided Filter", arXiv 1505.00996).

    Args:
        rgb: uint8 (H, W, 3).
        radius_px: A window has 2 * radius + 1 pixels a side, or as many as come nearest to it
            in the shrunk image.
        step: How many times the image is shrunk; 1 gives the guided filter itself.
    """

    def __init__(self, rgb: Rgb, radius_px: int, step: int = 1) -> None:
        height, width = rgb.shape[:2]
        self.size_hw = (max(1, round(height / step)), max(1, round(width / step)))
        self._side = 2 * round(radius_px / step) + 1
        full: Plane = rgb.astype(np.float32) / np.float32(255) - np.float32(0.5)
        small = cv2.resize(full, self.size_hw[::-1], interpolation=cv2.INTER_AREA) if step > 1 else full
        # Channels come first: numpy computes with whole planes faster than with three values a
        # pixel.
        self._full, self._colours = (
            np.ascontiguousarray(np.moveaxis(image, -1, 0)) for image in (full, small)
        )
        self._mean_colour = self._means(self._colours)
        pairs = zip(self._colours, self._mean_colour, strict=True)
        covariance = (
            np.array([self._covariance(*pair) for pair in pairs]) + EPSILON * np.eye(3)[..., None, None]
        )
        # The inverse by cofactors: libraries invert many small matrices slowly.
        cofactors = np.array([np.cross(covariance[n - 2], covariance[n - 1], axis=0) for n in range(3)])
        self._inverse = (cofactors / (covariance[0] * cofactors[0]).sum(axis=0)).astype(np.float32)

    def __call__(self, heat: Plane) -> Plane:
        """Return guided heat (H, W) for heat of `size_hw`, in its unit; it may go a little beyond the heat's range."""
        mean = self._mean(heat)
        slopes = np.einsum("ijhw,jhw->ihw", self._inverse, self._covariance(heat, mean))
        guided_heat = self._at_full_size(mean - np.einsum("ihw,ihw->hw", slopes, self._mean_colour))
        for slope, colour in zip(slopes, self._full, strict=True):
            guided_heat += self._at_full_size(slope) * colour
        return guided_heat

    def _covariance(self, plane: Plane, mean: Plane) -> Plane:
        """Return the covariance of a plane with each colour, (3, h, w), from the plane and its window means."""
        return self._means(self._colours * plane) - self._mean_colour * mean

    def _means(self, planes: Iterable[Plane]) -> Plane:
        return np.array([self._mean(plane) for plane in planes])

    def _mean(self, plane: Plane) -> Plane:
        """Return the mean of each pixel's window; beyond the border the image is mirrored."""
        mean: Plane = cv2.boxFilter(plane, -1, (self._side, self._side), borderType=cv2.BORDER_REFLECT)
        return mean

    def _at_full_size(self, plane: Plane) -> Plane:
        """Return the window means of a plane of the shrunk image, bilinear between its pixels."""
        full: Plane = cv2.resize(self._mean(plane), self._full.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
        return full


def grabcut(
    rgb: Rgb, inside: NDArray[np.bool_], sure: NDArray[np.bool_], patch_px: float
) -> NDArray[np.bool_] | None:
    """Return the outline by colour of the parts of a cut map, bool (H, W).

    GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) fits a mixture of colours to the
    foreground and another to the background. The cheapest outline between them runs along edges
    of the image. Here the map bounds that outline:

        the hottest pixels of the parts    surely the object
        the rest of the parts              probably the object
        within REACH_PATCHES around them   probably not
        farther away                       surely not

    `inside`, bool (H, W), are the pixels of the cut map's parts, `sure` those that are
    certainly foreground. A cell of the heat map has `patch_px` pixels of the image a side. None
    if one side has too few pixels to fit colours, or the area changes by more than
    `MOST_CHANGE`.
    """
    reach = round(REACH_PATCHES * patch_px)
    margin = round(FRAME_PATCHES * patch_px)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = cv2.dilate(inside.view(np.uint8), disc)
    left, top, width, height = cv2.boundingRect(near)
    frame = (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
    )
    label = np.where(near > 0, np.uint8(cv2.GC_PR_BGD), np.uint8(cv2.GC_BGD))
    label[inside] = cv2.GC_PR_FGD
    label[inside & sure] = cv2.GC_FGD
    foreground = _run_grabcut(np.ascontiguousarray(rgb[frame]), np.ascontiguousarray(label[frame]))
    if foreground is None:
        return None
    outline = np.zeros_like(inside)
    outline[frame] = foreground
    before = int(inside.sum())
    after = int(outline.sum())
    return outline if before <= MOST_CHANGE * after and after <= MOST_CHANGE * before else None


def _run_grabcut(rgb: Rgb, label: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Return GrabCut's foreground, bool (h, w), of uint8 (h, w, 3) from labels (h, w), on at most `FRAME_PX` pixels.

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
    # The colours' first guess is drawn from OpenCV's generator of this thread, which cannot be
    # read to be restored: each map gets the same guess.
    cv2.setRNGSeed(0)
    cv2.grabCut(rgb, label, None, mixtures[0], mixtures[1], ROUNDS, cv2.GC_INIT_WITH_MASK)
    cut: Plane = (label & 1).astype(np.float32)
    if scale < 1:
        cut = cv2.resize(cut, (width, height), interpolation=cv2.INTER_LINEAR)
    return cut > 0.5
