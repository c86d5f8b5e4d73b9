"""The variants that training sees of each photograph: as it is, mirrored, and cut out at random with other colours.

Each variant goes through the fixed part of the network once, before training, so there are a few and not a new one for
each step; windows of the grid (`Matching.window`) add to them what costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""RGB (side, side, 3)."""

Variant = Callable[[Pixels, np.random.Generator], Pixels]

LEAST_AREA: Final = 0.5
"""Share of the photograph that a cut-out shows at least."""


def plain(rgb: Pixels, _: np.random.Generator) -> Pixels:
    """The photograph as it is."""
    return rgb


def mirrored(rgb: Pixels, _: np.random.Generator) -> Pixels:
    """Left and right exchanged."""
    return np.ascontiguousarray(rgb[:, ::-1])


def varied(rgb: Pixels, rng: np.random.Generator) -> Pixels:
    """A random part of the photograph, stretched to its size, mirrored or not, with other light and colours."""
    side = len(rgb)
    area, aspect = rng.uniform(LEAST_AREA, 1.0), np.exp(rng.uniform(-0.2, 0.2))
    height, width = min(1.0, np.sqrt(area / aspect)), min(1.0, np.sqrt(area * aspect))
    top, left = rng.uniform(0.0, 1.0 - height), rng.uniform(0.0, 1.0 - width)
    part = rgb[round(top * side) : round((top + height) * side), round(left * side) : round((left + width) * side)]
    x = cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    if rng.random() < 0.5:
        x = x[:, ::-1]
    brightness, contrast, saturation = rng.uniform(-25.0, 25.0), rng.uniform(0.75, 1.25), rng.uniform(0.6, 1.4)
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (x - grey) * saturation
    x = (x - x.mean()) * contrast + x.mean() + brightness
    return np.ascontiguousarray(x.clip(0.0, 255.0).astype(np.uint8))


def variants(count: int) -> tuple[Variant, ...]:
    """The first is the photograph as it is, the second its mirror image, all others are varied."""
    return (plain, mirrored, *[varied] * (count - 2))[:count]
