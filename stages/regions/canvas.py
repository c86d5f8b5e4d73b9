"""The image as the model sees it, for what the regions stage asks of its colours."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.regions.guide import Guide

CANVAS_SIDE: Final = 320
"""Larger images are shrunk to this many pixels on their longer side. The cost grows with the area; the square
inputs of the usual models (224 px and less) stay as they are."""


class Canvas:
    """One image, for the maps of all its phrases.

    rgb: uint8 (H, W, 3), the whole image as the model saw it; kept with at most `CANVAS_SIDE` pixels a side.
    """

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        height, width = rgb.shape[:2]
        scale = CANVAS_SIDE / max(height, width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        self.rgb = rgb
        self._guides: dict[int, Guide] = {}

    @property
    def size_hw(self) -> tuple[int, int]:
        """In pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    def patch_px(self, grid_hw: tuple[int, int]) -> float:
        """Height of a cell of a heat map on it."""
        return self.size_hw[0] / grid_hw[0]

    def guide(self, radius_px: int) -> Guide:
        """Its colours as a guide for heat, made once."""
        if radius_px not in self._guides:
            self._guides[radius_px] = Guide(self.rgb, radius_px)
        return self._guides[radius_px]
