"""Heat in whole levels: what regions are cut from, and what a dataset stores of a heat map."""

from __future__ import annotations

from typing import Final

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


def quantise(values: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """Whole levels of a heat map: the lowest value becomes 0, the highest `LEVELS`.

    The levels of levels are the same levels, so that a map which was stored in levels is cut as it was.

    Args:
        values: float (grid_h, grid_w), any scale.

    Returns:
        uint8 of the same shape, or None where there is nothing to see: the map is constant up to rounding noise, as one
        of zeros is, or not finite.
    """
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high - low <= SMALLEST_SPREAD * max(abs(low), abs(high)):
        return None
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.floor(shares * LEVELS + 0.5).astype(np.uint8)
