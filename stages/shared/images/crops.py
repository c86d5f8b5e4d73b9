"""Regions cut out of images, as images of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.contract.geometry import Box
from stages.shared.images.decode import RESAMPLING, Interpolation
from stages.shared.images.faults import quiet


def cut_out(
    rgb: NDArray[np.uint8], boxes_rel: Sequence[Box], size_px: int, interpolation: Interpolation = "bicubic"
) -> NDArray[np.uint8]:
    """Return each region stretched to a square, antialiased as whole images are: uint8 (R, size_px, size_px, 3).

    Boxes are x0, y0, x1, y1 as shares of the image's sides, within it. They are widened to whole pixels, so that each
    shows one at least.
    """
    height, width = rgb.shape[:2]
    cut = np.empty((len(boxes_rel), size_px, size_px, 3), np.uint8)
    with quiet():
        image = Image.fromarray(rgb)
        for number, (x0, y0, x1, y1) in enumerate(boxes_rel):
            left, right = _whole(x0 * width, x1 * width, width)
            top, bottom = _whole(y0 * height, y1 * height, height)
            # First cut, then resized: Pillow's own `box` mixes what lies around it into the edges.
            part = image.crop((left, top, right, bottom)).resize((size_px, size_px), RESAMPLING[interpolation])
            cut[number] = np.asarray(part)
    return cut


def _whole(start: float, stop: float, side: int) -> tuple[int, int]:
    """The whole pixels that a stretch of an image touches, one or more."""
    first = min(max(math.floor(start + 1e-6), 0), side - 1)
    return first, min(max(math.ceil(stop - 1e-6), first + 1), side)
