"""From the explainer's map to whole levels on the grid, and to a finer map of the same surface.

A heat map has few cells (14 x 14 for a 224 px ViT-B/16) and an image has many pixels. Between the centres of the cells
the map is bilinear, beyond the outermost centres it is constant. This is the convention of `cv2.resize` (half-pixel
centres, `align_corners=False`), in which a cell covers its exact share of the image. The surface is never drawn at the
size of the image. Components are found on a *fine map* with an odd number of samples per cell and direction: the
centres of the cells are then among the samples, and bilinear interpolation between the samples is exactly the surface
again, at any image size.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

LEVELS: Final = 255
"""Heat is rounded to the whole levels 0 .. 255 before anything is decided on it.

The last bits of a map depend on the shape of the batch and on the processor. On whole levels the rules' decisions are
exact: flat parts of the map stay flat, Otsu's histogram does not move, and the regions are almost always the same. The
exception is a value on the border between two levels. Measured on 14 x 14 maps, by relative differences of the cells:
with 1e-6 one map in 300 changes a level somewhere (with 4,096 levels it would be one in 20) and one in 750 its mask, by
some ten pixels at 640 x 480; with 1e-7 one in 3,000. Rows are equal bit for bit if the model stage computes the same
batch shape on the same kind of device; this rounding is a second safeguard."""

SMALLEST_SPREAD: Final = 1e-5
"""A map whose spread is below this share of its largest magnitude holds nothing but rounding noise."""

FINE_SIDE: Final = 112
"""The fine map has at most this many samples on its longer side, unless the grid has more cells.

For a 14 x 14 grid that is 7 samples per cell. The size does not limit the precision of contours (see the module), only
that of cleaning and of the line between two touching components."""


def quantise(values: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """Whole levels of a heat map: the lowest value becomes 0, the highest `LEVELS`.

    values: float (grid_h, grid_w), any scale.

    Returns uint8 of the same shape, or None where there is nothing to see: the map is constant up to rounding noise, as
    one of zeros is, or not finite.
    """
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high - low <= SMALLEST_SPREAD * max(abs(low), abs(high)):
        return None
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.floor(shares * LEVELS + 0.5).astype(np.uint8)


def smooth(levels: NDArray[np.uint8], sigma_patches: float) -> NDArray[np.uint8] | None:
    """Gaussian blur on the grid, then whole levels again (see `quantise`, also for None).

    sigma_patches: Standard deviation in cells; 0 changes nothing. Beyond the border the outermost cells continue.
    """
    if sigma_patches == 0:
        return levels
    blurred: NDArray[np.float32] = cv2.GaussianBlur(
        levels.astype(np.float32), (0, 0), sigma_patches, borderType=cv2.BORDER_REPLICATE
    )
    return quantise(blurred)


def samples_per_cell(grid_hw: tuple[int, int]) -> int:
    """Odd number of samples per cell and direction that keeps the fine map within `FINE_SIDE`."""
    samples = max(1, FINE_SIDE // max(grid_hw))
    return samples - 1 + samples % 2


def refine_grid(levels: NDArray[np.uint8], fine_hw: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """The fine map, in levels: float32 (grid_h * n, grid_w * n) with n = `samples_per_cell`, or `fine_hw`.

    fine_hw: At least as many samples as cells. With another number than n the map between the samples is no longer
        exactly the surface.
    """
    h, w = levels.shape
    samples = samples_per_cell((h, w))
    fine_h, fine_w = (h * samples, w * samples) if fine_hw is None else fine_hw
    fine: NDArray[np.float32] = cv2.resize(levels.astype(np.float32), (fine_w, fine_h), interpolation=cv2.INTER_LINEAR)
    return fine
