"""Masks of the regions of an image from their run lengths: as pixels, or at the size of a feature grid.

The grid needs no image-sized array. The share of a cell is an integral over the mask, and a mask is a sum of runs of
pixels down the columns: what lies before a run's end minus what lies before its start. Before a pixel (x, y) lie the
columns left of x, and column x above y. In each cell, the columns cover a share of its width, and the part of column x
covers a product of shares of its width and height.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Tables = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def grid_shares(
    ends: NDArray[np.int64], starts: NDArray[np.int64], size_hw: tuple[int, int], grid_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """The share of each cell that is inside, for the masks of one image.

    Args:
        ends, starts: Runs as `stages.contract.masks.run_ends` gives them, of masks of one size.
        size_hw: Size of the masks, px.
        grid_hw: Cells. Their edges may lie within pixels, which then count in parts.

    Returns:
        float32 (masks, grid_h, grid_w), 0 .. 1, exact to about 1e-5.
    """
    shares = np.empty((len(starts) - 1, *grid_hw), np.float32)
    if not len(shares):
        return shares
    left, at, above = _tables(size_hw, grid_hw)
    x, y = np.divmod(ends, size_hw[0])
    for number in range(len(shares)):
        # Ends of runs alternate: the inside begins, the inside ends. An odd last one is the end of the image.
        first, last = starts[number], starts[number + 1] - (starts[number + 1] - starts[number]) % 2
        x0, y0, x1, y1 = x[first:last:2], y[first:last:2], x[first + 1 : last : 2], y[first + 1 : last : 2]
        heights = above.take(y1, axis=0)
        heights -= above.take(y0, axis=0)
        shares[number] = heights.T @ at.take(x0, axis=0)
        crossing = np.flatnonzero(x0 != x1)
        if len(crossing):  # few runs do, in most masks
            x0, x1, y1 = x0[crossing], x1[crossing], y1[crossing]
            shares[number] += above.take(y1, axis=0).T @ (at.take(x1, axis=0) - at.take(x0, axis=0))
            shares[number] += (left.take(x1, axis=0) - left.take(x0, axis=0)).sum(axis=0)
    return shares.clip(0, 1, out=shares)


def full_masks(
    ends: NDArray[np.int64], starts: NDArray[np.int64], size_hw: tuple[int, int], wanted_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """The masks of one image as pixels.

    Args:
        ends, starts, size_hw: As for `grid_shares`.
        wanted_hw: Size to stretch the masks to; each pixel takes the value at its centre.

    Returns:
        bool (masks, height, width).
    """
    (h, w), number = size_hw, len(starts) - 1
    if not number:
        return np.zeros((0, *wanted_hw), np.bool_)
    lengths = np.diff(ends, prepend=0)
    lengths[starts[1:-1]] = ends[starts[1:-1]]
    inside = (np.arange(len(ends)) - np.repeat(starts[:-1], np.diff(starts))) % 2 == 1
    columns = np.repeat(inside, lengths).reshape(number, w, h)
    if wanted_hw != size_hw:
        y, x = (
            ((np.arange(wanted) + 0.5) * side / wanted).astype(np.int64)
            for wanted, side in zip(wanted_hw, size_hw, strict=True)
        )
        columns = columns[:, x][:, :, y]
    return np.ascontiguousarray(columns.transpose(0, 2, 1))


@lru_cache(maxsize=64)
def _tables(size_hw: tuple[int, int], grid_hw: tuple[int, int]) -> Tables:
    """Shares of grid columns and rows, by pixel.

    Returns:
        For each x, the share of every grid column that lies left of it (w + 1, grid_w), and the share that pixel
        column x covers; for each y, the share of every grid row that lies above it (h, grid_h).
    """
    (h, w), (grid_h, grid_w) = size_hw, grid_hw
    left = (np.arange(w + 1)[:, None] * (grid_w / w) - np.arange(grid_w)).clip(0, 1)
    at = np.concatenate([np.diff(left, axis=0), np.zeros((1, grid_w))])
    above = (np.arange(h)[:, None] * (grid_h / h) - np.arange(grid_h)).clip(0, 1)
    return left.astype(np.float32), at.astype(np.float32), above.astype(np.float32)
