"""Heat in whole levels: what regions are cut from, and what a dataset stores of a heat map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVELS: Final = 255
"""Heat is rounded to the whole levels 0 .. 255 before anything is decided on it.

The last bits of a map depend on the shape of the batch and on the processor. On whole levels the rules' decisions are
exact, and the regions are almost always the same. The exception is a value on the border between two levels. Measured
on 14 x 14 maps: with relative differences of 1e-6 one map in 300 changes a level somewhere, and one in 750 its mask, by
some ten pixels at 640 x 480."""

SMALLEST_SPREAD: Final = 1e-5
"""A map whose spread is below this share of its largest magnitude holds nothing but rounding noise."""

Levels = NDArray[np.uint8]
Seen = NDArray[np.bool_]


def quantise(values: NDArray[np.float32]) -> Levels | None:
    """Return the whole levels of a heat map: the lowest value becomes 0, the highest `LEVELS`.

    The levels of levels are the same levels, so that a map which was stored in levels is cut as it was.

    Args:
        values: float (grid_h, grid_w), any scale.

    Returns:
        uint8 of the same shape, or None if there is nothing to see: the map is constant up to rounding noise, as one
        of zeros is, or not finite.
    """
    levels, seen = quantise_each(values[None])
    return levels[0] if seen[0] else None


def quantise_each(maps: NDArray[np.float32]) -> tuple[Levels, Seen]:
    """Return the levels of each of many maps (maps, grid_h, grid_w), and whether there is something to see (maps,).

    The levels of a map with nothing to see are 0. See `quantise`.
    """
    if maps.size == 0:
        return np.zeros(maps.shape, np.uint8), np.zeros(len(maps), np.bool_)
    low, high = (each(axis=(1, 2), keepdims=True).astype(np.float64) for each in (maps.min, maps.max))
    with np.errstate(invalid="ignore"):  # of infinite heat
        spread = high - low
        seen = np.isfinite(spread) & (spread > SMALLEST_SPREAD * np.maximum(np.abs(low), np.abs(high)))
    maps, low, spread = np.where(seen, maps, 0), np.where(seen, low, 0.0), np.where(seen, spread, 1.0)
    levels = ((maps - low) / spread * LEVELS + 0.5).astype(np.uint8)  # which rounds down
    return levels * seen, seen[:, 0, 0]


def levels_of(
    maps: Sequence[NDArray[np.float32] | None], then: Callable[[Levels], tuple[Levels, Seen]] | None = None
) -> list[Levels | None]:
    """Return the levels of each of many maps, as `quantise`; those of one shape are computed at once.

    Args:
        maps: None has no levels.
        then: Changes the levels (maps, grid_h, grid_w) of maps of one shape; returns them and which can still be seen.
    """
    alike: dict[tuple[int, ...], dict[int, NDArray[np.float32]]] = {}
    for number, values in enumerate(maps):
        if values is not None:
            alike.setdefault(values.shape, {})[number] = values
    found: list[Levels | None] = [None] * len(maps)
    for numbered in alike.values():
        levels, seen = quantise_each(np.stack(list(numbered.values())))
        if then is not None:
            levels, still_seen = then(levels)
            seen = seen & still_seen
        for number, own, is_seen in zip(numbered, levels, seen.tolist(), strict=True):
            found[number] = own if is_seen else None
    return found
