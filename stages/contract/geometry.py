"""The one place that knows a coordinate convention.

x runs right, y runs down, the origin is the top left *corner* of the top left pixel. Boxes are
half open: a one-pixel mask in column 3 has x 3 and w 1. Suffixes name the form: `_xyxy`,
`_xywh`, `_px` (pixels of the EXIF-rotated original image), `_rel` (0 .. 1), `_hw`, `_wh`.
Arrays are (H, W); sizes shown to people are width x height.

The same holds for a grid of `cells` values over a side of `side_px` pixels: cell i covers the
pixels from `i * side_px / cells` to `(i + 1) * side_px / cells`, and its value belongs to its
centre. This is the convention of `cv2.resize` and of `align_corners=False` in torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from phrasebox.stages.contract.values import PixelBox, Plane, Sides

Box = tuple[float, float, float, float]

Coordinate = TypeVar("Coordinate", float, NDArray[np.float64])


def scaled_sides(size: Sides, scale: float) -> Sides:
    """Return both sides of an image times a scale, in whole pixels and not below 1.

    >>> scaled_sides((640, 2), 0.1)
    (64, 1)
    """
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def xywh_to_xyxy(box_xywh: Box) -> Box:
    """Return (x0, y0, x1, y1).

    >>> xywh_to_xyxy((3, 0, 1, 2))
    (3, 0, 4, 2)
    """
    x, y, w, h = box_xywh
    return (x, y, x + w, y + h)


def xyxy_to_xywh(box_xyxy: Box) -> Box:
    """Return (x, y, w, h)."""
    x0, y0, x1, y1 = box_xyxy
    return (x0, y0, x1 - x0, y1 - y0)


def whole_pixels(box_xyxy: Box, size_hw: Sides) -> PixelBox:
    """Return a box with rounded edges within an image, one pixel wide and high at least.

    >>> whole_pixels((-2.0, 0.4, 0.3, 9.0), (4, 6))
    (0, 0, 1, 4)
    """
    height, width = size_hw
    x0, y0, x1, y1 = map(round, box_xyxy)
    left = min(max(0, x0), width - 1)
    top = min(max(0, y0), height - 1)
    return left, top, max(left + 1, min(x1, width)), max(top + 1, min(y1, height))


def box_iou(a_xywh: Box, b_xywh: Box) -> float:
    """Return the intersection over union of two boxes, 0 .. 1; 0 if both are empty.

    >>> box_iou((0, 0, 2, 2), (1, 0, 2, 2))
    0.3333333333333333
    """
    ax0, ay0, ax1, ay1 = xywh_to_xyxy(a_xywh)
    bx0, by0, bx1, by1 = xywh_to_xyxy(b_xywh)
    inter = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = a_xywh[2] * a_xywh[3] + b_xywh[2] * b_xywh[3] - inter
    return inter / union if union > 0 else 0.0


def round_to_multiple(side_px: float, multiple: int) -> int:
    """Return the nearest positive multiple, halves up, as Grad-ECLIP's reference preprocessing (arXiv 2502.18816).

    >>> round_to_multiple(488, 16)
    496
    """
    return max(1, int(side_px / multiple + 0.5)) * multiple


def px_to_cell(position_px: Coordinate, *, side_px: int, cells: int) -> Coordinate:
    """Return a position in cells: 0.0 is the centre of cell 0, -0.5 the edge of the image.

    The centre of pixel i is `i + 0.5`, so its value is read at `px_to_cell(i + 0.5, ...)`.

    >>> px_to_cell(8.0, side_px=32, cells=2)
    0.0
    """
    return position_px * cells / side_px - 0.5


def cell_to_px(position_cells: Coordinate, *, side_px: int, cells: int) -> Coordinate:
    """Return a position in pixels: `cell_to_px(0.0, ...)` is the centre of cell 0."""
    return (position_cells + 0.5) * side_px / cells


def resize_shifted(
    values: Plane,
    size_hw: Sides,
    shift_cells: float,
) -> Plane:
    """Draw a grid with values beside the centres of their cells, right of and below them for a shift above 0.

    Between the values the result is bilinear, beyond the outermost ones constant. Without a
    shift this is `cv2.resize`, to rounding. The result, float32 of `size_hw`, covers the same
    image as the values (grid_h, grid_w).
    """
    rows, columns = (
        _shares(side, cells, shift_cells) for side, cells in zip(size_hw, values.shape, strict=True)
    )
    samples: Plane = (rows @ values.astype(np.float64) @ columns.T).astype(np.float32)
    return samples


@lru_cache(maxsize=16)
def _shares(samples: int, cells: int, shift_cells: float) -> NDArray[np.float64]:
    """Return the share of each cell in each sample along a side: (samples, cells), rows sum to 1; read-only."""
    centres = np.arange(samples, dtype=np.float64) + 0.5
    position = np.clip(
        px_to_cell(centres, side_px=samples, cells=cells) - shift_cells,
        0,
        cells - 1,
    )
    shares: NDArray[np.float64] = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)
    shares.flags.writeable = False
    return shares
