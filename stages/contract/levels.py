"""Heat in whole levels: regions are cut from it, and datasets store it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Final, TypeVar

import numpy as np

from phrasebox.stages.contract.values import Levels, Plane

LEVELS: Final = 255
"""Heat is rounded to the whole levels 0 .. 255 before anything is decided on it.

The last bits of a map depend on the shape of the batch and on the processor. On whole levels
the rules' decisions are exact, and the regions are almost always the same. The exception is a
value on the border between two levels. Measured on 14 x 14 maps: with relative differences of
1e-6 one map in 300 changes a level somewhere, and one in 750 its mask, by some ten pixels at
640 x 480."""

MOST_CELLS: Final = 2**16  # of maps that are computed at once, which many cuts of them multiply

AnswerT = TypeVar("AnswerT")

SMALLEST_SPREAD: Final = (
    1e-5  # Below this share of its largest magnitude, the spread of a map is rounding noise
)


def quantise(values: Plane) -> Levels | None:
    """Return the whole levels of a heat map (grid_h, grid_w): its lowest value becomes 0, its highest `LEVELS`.

    A factor on all heat of a map therefore changes nothing; a bound on it does. The levels of
    levels are the same levels: a stored map is cut like the original. None if the
    map is constant up to rounding noise (all zeros, for example), not finite, or empty.

    >>> quantise(np.array([[0.0, 0.5], [1.0, 0.0]], np.float32))
    array([[  0, 128],
           [255,   0]], dtype=uint8)
    """
    if not values.size:
        return None
    low = float(values.min())
    high = float(values.max())
    spread = high - low
    if not math.isfinite(spread) or spread <= SMALLEST_SPREAD * max(abs(low), abs(high)):
        return None
    return ((values.astype(np.float64) - low) / spread * LEVELS + 0.5).astype(np.uint8)  # which rounds down


def map_by_size(
    compute: Callable[..., Iterable[AnswerT]], maps: Sequence[Levels], *values: Sequence[object]
) -> list[AnswerT]:
    """Return an answer for each of some maps, computed for many of one size at once.

    Args:
        compute: Takes maps (n, h, w), and n of each of the `values`; gives n answers.
        maps: uint8 (h, w), of any sizes.
        values: For each map, more arguments of `compute`.

    >>> maps = [np.zeros((1, 2), np.uint8), np.ones((2, 1), np.uint8), np.ones((1, 2), np.uint8)]
    >>> map_by_size(lambda stack, names: [f"{name} {stack.shape}" for name in names], maps, "abc")
    ['a (2, 1, 2)', 'b (1, 2, 1)', 'c (2, 1, 2)']
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, levels in enumerate(maps):
        places.setdefault(levels.shape, []).append(place)
    answers: dict[int, AnswerT] = {}
    for (h, w), places_of_size in places.items():
        size = max(1, MOST_CELLS // (h * w))
        for start in range(0, len(places_of_size), size):
            stack = places_of_size[start : start + size]
            given = ([each[place] for place in stack] for each in values)
            answers |= zip(stack, compute(np.stack([maps[place] for place in stack]), *given), strict=True)
    return [answers[place] for place in range(len(maps))]


def raise_levels(levels: Levels, exponent: float) -> Levels:
    """Return levels whose shares of `LEVELS` are raised to a power; the lowest and the highest level stay.

    >>> raise_levels(np.array([[0, 51, 102, 255]], np.uint8), 2.0)
    array([[  0,  10,  41, 255]], dtype=uint8)
    """
    return levels if exponent == 1.0 else _raised(exponent)[levels]


@cache
def _raised(exponent: float) -> Levels:
    """The level that each level becomes, (256,)."""
    shares = np.arange(LEVELS + 1, dtype=np.float64) / LEVELS
    return np.rint(shares**exponent * LEVELS).astype(np.uint8)
