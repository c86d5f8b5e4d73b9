"""From whole levels on the grid to a finer map of the same surface.

Between the centres of the cells the map is bilinear, beyond the outermost ones constant, as in
`cv2.resize`. The surface is never drawn at the size of the image. Parts are found on a *fine
map* with an odd number of samples per cell and direction: the centres of the cells are then
among the samples, and bilinear interpolation between them is exactly the surface again, at any
image size.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from phrasebox.stages.contract.geometry import resize_shifted
from phrasebox.stages.contract.values import Levels, Plane, Sides

FINE_SIDE: Final = 112
"""The fine map has at most this many samples on its longer side, unless the grid has more cells.

For a 14 x 14 grid that is 7 samples per cell. The size does not limit the precision of contours
(see the module), only that of the line between two touching parts."""


def samples_per_cell(grid_hw: Sides) -> int:
    """Return the odd number of samples per cell and direction that keeps the fine map within `FINE_SIDE`.

    >>> samples_per_cell((14, 14)), samples_per_cell((22, 30))
    (7, 3)
    """
    samples = max(1, FINE_SIDE // max(grid_hw))
    return samples - 1 + samples % 2


def refine_grid(levels: Levels, fine_hw: Sides | None = None, shift_cells: float = 0.0) -> Plane:
    """Return the fine map, float32 of `fine_hw`, in levels.

    Args:
        levels: uint8 (grid_h, grid_w).
        fine_hw: Samples, at least as many as cells. None: `samples_per_cell` in each; with
            others the map between the samples is not exactly the surface.
        shift_cells: See `HeatMap.shift_cells`. The fine map covers the image, wherever the
            values lie.
    """
    h, w = levels.shape
    samples = samples_per_cell((h, w))
    fine_h, fine_w = fine_hw or (h * samples, w * samples)
    if shift_cells:
        return resize_shifted(levels.astype(np.float32), (fine_h, fine_w), shift_cells)
    fine: Plane = cv2.resize(levels.astype(np.float32), (fine_w, fine_h), interpolation=cv2.INTER_LINEAR)
    return fine
