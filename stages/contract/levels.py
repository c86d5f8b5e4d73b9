"""Heat in whole levels: what regions are cut from, and what a dataset stores of a heat map."""

from __future__ import annotations

from collections.abc import Sequence
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
    levels, seen = quantise_each(values[None])
    return levels[0] if seen[0] else None


def quantise_each(maps: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Like `quantise` for each of many maps of one shape.

    Args:
        maps: float (maps, grid_h, grid_w), each of any scale.

    Returns:
        uint8 of the same shape, and whether there is something to see, bool (maps,); where there is not, levels are 0.
    """
    if maps.size == 0:
        return np.zeros(maps.shape, np.uint8), np.zeros(len(maps), np.bool_)
    low, high = (each(axis=(1, 2), keepdims=True).astype(np.float64) for each in (maps.min, maps.max))
    with np.errstate(invalid="ignore"):  # of infinite heat
        spread = high - low
        seen = np.isfinite(spread) & (spread > SMALLEST_SPREAD * np.maximum(np.abs(low), np.abs(high)))
    all_seen = bool(seen.all())
    if not all_seen:
        maps, low, spread = np.where(seen, maps, 0), np.where(seen, low, 0.0), np.where(seen, spread, 1.0)
    shares = np.subtract(maps, low, dtype=np.float64)
    shares /= spread
    shares *= LEVELS
    shares += 0.5
    levels = shares.astype(np.uint8)  # which rounds down
    if not all_seen:
        levels *= seen
    return levels, seen[:, 0, 0]


def levels_of(maps: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8] | None]:
    """Like `quantise` for each of many maps, those of one shape at once."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, values in enumerate(maps):
        alike.setdefault(values.shape, []).append(number)
    found: list[NDArray[np.uint8] | None] = [None] * len(maps)
    for numbers in alike.values():
        levels, seen = quantise_each(np.stack([maps[number] for number in numbers]))
        for number, own, is_seen in zip(numbers, levels, seen.tolist(), strict=True):
            found[number] = own if is_seen else None
    return found
