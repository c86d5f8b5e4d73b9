"""Regions cut out of images, as images of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Rgb
from phrasebox.stages.images.decode import RESAMPLING, Interpolation
from phrasebox.stages.images.faults import suppress_warnings


def crop_regions(
    rgb: Rgb, boxes_rel: Sequence[Box], size_px: int, interpolation: Interpolation = "bicubic"
) -> Rgb:
    """Return the regions, stretched to squares, antialiased as whole images are: uint8 (R, size_px, size_px, 3).

    Boxes are x0, y0, x1, y1 as shares of the image's sides, within it. They are widened to
    whole pixels, so that each shows one at least.
    """
    height, width = rgb.shape[:2]
    crops = np.empty((len(boxes_rel), size_px, size_px, 3), np.uint8)
    with suppress_warnings():
        image = Image.fromarray(rgb)
        for number, (x0, y0, x1, y1) in enumerate(boxes_rel):
            left, right = _whole_pixels(x0 * width, x1 * width, width)
            top, bottom = _whole_pixels(y0 * height, y1 * height, height)
            # First cropped, then resized: Pillow's own `box` mixes the surroundings into the edges.
            crop = image.crop((left, top, right, bottom)).resize(
                (size_px, size_px),
                RESAMPLING[interpolation],
            )
            crops[number] = np.asarray(crop)
    return crops


def _whole_pixels(start: float, stop: float, side: int) -> tuple[int, int]:
    """Return the range of whole pixels that an interval of an image touches, at least one."""
    first = min(max(math.floor(start + 1e-6), 0), side - 1)
    return first, min(max(math.ceil(stop - 1e-6), first + 1), side)
