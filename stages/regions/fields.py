"""Signed fields: what lies inside a part, and how far from its contour.

A *field* is positive inside and not positive outside, on the samples of a fine map, see `components.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.regions.components import Component


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedField:
    """A field over the whole image, of which only a window is stored: elsewhere it is not positive.

    Attributes:
        values: float32 (h, w), finite; not positive along those sides of the window that lie within the image.
        top: Where the window begins, in samples, as `left`.
        left: See `top`.
        full_hw: Samples over the whole image.
    """

    values: NDArray[np.float32]
    top: int
    left: int
    full_hw: tuple[int, int]


def component_field(fine: NDArray[np.float32], threshold: float, part: Component) -> SignedField:
    """The field whose sign is the component and whose size is the distance of the map from the threshold.

    Where the component is just `fine > threshold`, the field is `fine - threshold` and the mask's outline is the exact
    contour of the map. Where cleaning added or removed samples, or where another component begins, the outline runs
    between the samples. The fields of two components are never positive at the same point, so their masks do not
    overlap.

    fine: float32 (fine_h, fine_w), same unit as `threshold`.
    """
    distance = np.abs(fine[_around(part)] - np.float32(threshold))
    # a sample on the threshold has a side, too
    return _signed(part, np.maximum(distance, np.float32(1e-3)), (fine.shape[0], fine.shape[1]))


def flat_field(part: Component, fine_hw: tuple[int, int]) -> SignedField:
    """The field of +1 inside the component and -1 outside: its outline runs halfway between the samples.

    fine_hw: Samples of the whole map.
    """
    rows, columns = _around(part)
    size_hw = (min(rows.stop, fine_hw[0]) - rows.start, min(columns.stop, fine_hw[1]) - columns.start)
    return _signed(part, np.ones(size_hw, dtype=np.float32), fine_hw)


def _around(part: Component) -> tuple[slice, slice]:
    """The part's box and one sample more on each side: a contour lies between a positive and a negative sample."""
    h, w = part.inside.shape
    return slice(max(0, part.top - 1), part.top + h + 1), slice(max(0, part.left - 1), part.left + w + 1)


def _signed(part: Component, values: NDArray[np.float32], full_hw: tuple[int, int]) -> SignedField:
    """The field with these magnitudes (h, w) in the window around a part."""
    h, w = part.inside.shape
    rows, columns = _around(part)
    outside = np.ones(values.shape, dtype=np.bool_)
    row, column = part.top - rows.start, part.left - columns.start
    np.logical_not(part.inside, out=outside[row : row + h, column : column + w])
    np.negative(values, out=values, where=outside)
    return SignedField(values=values, top=rows.start, left=columns.start, full_hw=full_hw)
