"""Heat between the cells of the grid, along the edges of the image: the guided filter.

A cell of a heat map is some 10 px wide and tells nothing of what lies within it; interpolation lets the heat of a
thin or small thing run over its edges, and the peak come to lie beside it. The guided filter (He, Sun and Tang,
"Guided Image Filtering", IEEE TPAMI 35, 2013) takes the interpolated heat q in each window w of the image as a
linear function of the colours I there, and averages what all windows around a pixel say of it:

    a_w = (cov_w(I) + EPSILON)^-1 cov_w(I, q)      b_w = mean_w(q) - a_w . mean_w(I)
    guided_i = mean(a_w) . I_i + mean(b_w)         over all w that hold i

so that heat goes up and down where colours do. What the colours of the surroundings do not explain is
blurred over the window. All of it is box means, whose cost does not depend on the window.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

RADIUS_PATCHES: Final = 2.0
"""Half the window's side in patches: wide enough to hold a cell's surroundings on both sides of an edge. On drawn
scenes pointing is .936 to .947 from 1.5 to 4 patches (606 phrases)."""

EPSILON: Final = 1e-3
"""Variance of a colour channel (0 .. 1) that is taken for noise: smaller changes of colour guide nothing."""

Plane = NDArray[np.float32]


class Guide:
    """What the guided filter needs to know of an image, for windows of one size.

    rgb: uint8 (H, W, 3). radius_px: a window has 2 * radius + 1 pixels a side.
    """

    def __init__(self, rgb: NDArray[np.uint8], radius_px: int, epsilon: float = EPSILON) -> None:
        self._side = 2 * radius_px + 1
        shares = rgb.astype(np.float32) / np.float32(255) - np.float32(0.5)
        self._colours: list[Plane] = [np.ascontiguousarray(shares[..., c]) for c in range(3)]
        self._means = [self._mean(colour) for colour in self._colours]
        rr, rg, rb, gg, gb, bb = (
            self._mean(self._colours[i] * self._colours[j]) - self._means[i] * self._means[j]
            for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        )
        rr, gg, bb = rr + epsilon, gg + epsilon, bb + epsilon
        # The symmetric inverse by cofactors, one plane an entry: no library inverts so many 3 x 3 as fast.
        first = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb)
        scale = 1 / (rr * first[0] + rg * first[1] + rb * first[2])
        xx, xy, xz = (entry * scale for entry in first)
        yy, yz, zz = (rr * bb - rb * rb) * scale, (rb * rg - rr * gb) * scale, (rr * gg - rg * rg) * scale
        self._inverse: tuple[tuple[Plane, ...], ...] = ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))

    def __call__(self, heat: Plane) -> Plane:
        """Heat (H, W) -> guided heat (H, W), in the same unit; it may go a little beyond the range of the given."""
        mean = self._mean(heat)
        together = [
            self._mean(colour * heat) - colour_mean * mean
            for colour, colour_mean in zip(self._colours, self._means, strict=True)
        ]
        guided, rest = np.zeros_like(heat), mean
        for row, colour, colour_mean in zip(self._inverse, self._colours, self._means, strict=True):
            slope = row[0] * together[0] + row[1] * together[1] + row[2] * together[2]
            guided += self._mean(slope) * colour
            rest = rest - slope * colour_mean
        return guided + self._mean(rest)

    def _mean(self, plane: Plane) -> Plane:
        """Of each pixel's window; beyond the border the image is mirrored."""
        mean: Plane = cv2.boxFilter(plane, -1, (self._side, self._side), borderType=cv2.BORDER_REFLECT)
        return mean
