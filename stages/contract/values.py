"""Names for the types of values that many rooms share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]
"""Keys and plain values."""

Sides = tuple[int, int]
"""Height and width, or rows and columns, where a name ends in `_hw`; width and height where it ends in `_wh`."""

PixelBox = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels, half open."""

Floats = NDArray[np.float64]

Floats32 = NDArray[np.float32]

Integers = NDArray[np.int64]

Bools = NDArray[np.bool_]

Rgb = NDArray[np.uint8]
"""Pixels (H, W, 3)."""

Levels = NDArray[np.uint8]
"""A whole number 0 .. 255 for each place (h, w)."""

Plane = NDArray[np.float32]
"""A number for each place (h, w): heat, logits, the field of a mask."""
