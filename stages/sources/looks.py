"""What CLIP sees in boxes: an embedding for each, from its part of the image or from the image's dense features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.stage import Forwards
from stages.model.clip import ClipModel
from stages.model.regional import by_boxes
from stages.model.towers.dense import dense

BoxXyxy = tuple[int, int, int, int]
"""Whole pixels of a canvas, half open."""

BoxedImage = tuple[NDArray[np.uint8], Sequence[BoxXyxy]]
"""A canvas, uint8 (H, W, 3), and boxes in it."""

AT_ONCE: Final = {"cpu": 16, "cuda": 256}
"""Images, or parts of them, in one forward pass."""


class Look(ABC):
    """Embeds boxes of images. All forward passes have one shape, so that no answer depends on a neighbour.

    Args:
        model: The model.
        at_once: Images, or parts of images, of one forward pass; None for what suits the device.
    """

    def __init__(self, model: ClipModel, at_once: int | None = None) -> None:
        self.model = model
        self.at_once = at_once or AT_ONCE["cuda" if model.device.type == "cuda" else "cpu"]
        self._images = self._computed = 0

    @abstractmethod
    def __call__(self, images: Sequence[BoxedImage]) -> list[NDArray[np.float32]]:
        """Unit embeddings (boxes, E) of the boxes of each image."""

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`."""
        forwards = Forwards(images=self._images, computed=self._computed, device=self.model.device_name)
        self._images = self._computed = 0
        return forwards

    def _passes(self, squares: Iterable[NDArray[np.uint8]]) -> Iterator[tuple[Tensor, int]]:
        """Batches uint8 (B, side, side, 3) of one size, and how many of each are not there to fill it up."""
        rest = iter(squares)
        while batch := list(islice(rest, self.at_once)):
            self._images += len(batch)
            self._computed += self.at_once
            blank = [np.zeros_like(batch[0])] * (self.at_once - len(batch))
            yield torch.from_numpy(np.stack([*batch, *blank])), len(batch)

    def _square(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A part of an image at the size of the model's input, stretched as whole images are."""
        side = self.model.input.size_px
        how = cv2.INTER_AREA if min(part.shape[:2]) > side else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(part, (side, side), interpolation=how), np.uint8)


class CropLook(Look):
    """The embedding of each box's part of the image: one forward pass for each box.

    Args:
        model: See `Look`.
        at_once: See `Look`.
        enlarge: By how much the sides of a box are multiplied first.
    """

    def __init__(self, model: ClipModel, at_once: int | None = None, *, enlarge: float = 1.0) -> None:
        super().__init__(model, at_once)
        self.enlarge = enlarge

    @torch.no_grad()
    def __call__(self, images: Sequence[BoxedImage]) -> list[NDArray[np.float32]]:
        """See `Look.__call__`."""
        parts = (self._part(canvas, box) for canvas, boxes in images for box in boxes)
        rows = (
            row
            for batch, count in self._passes(parts)
            for row in F.normalize(self.model.tower.encode(batch).float(), dim=-1)[:count].cpu().numpy()
        )
        return [np.array(list(islice(rows, len(boxes))), np.float32) for _, boxes in images]

    def _part(self, canvas: NDArray[np.uint8], box_xyxy: BoxXyxy) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = enlarged(box_xyxy, self.enlarge, (canvas.shape[0], canvas.shape[1]))
        return self._square(canvas[y0:y1, x0:x1])


class RoiLook(Look):
    """RoIAlign on the dense features of the whole image: one forward pass for all boxes of an image."""

    @torch.no_grad()
    def __call__(self, images: Sequence[BoxedImage]) -> list[NDArray[np.float32]]:
        """See `Look.__call__`."""
        tower, side = self.model.tower, self.model.input.size_px
        grid_hw = tower.placement.grid_hw(side, side)
        found: list[NDArray[np.float32]] = []
        rest = iter(images)
        for batch, count in self._passes(self._square(canvas) for canvas, _ in images):
            patches = dense(tower, batch).patches
            for number, (canvas, boxes) in enumerate(islice(rest, count)):
                height, width = canvas.shape[:2]
                scaled = np.array(boxes, np.float64).reshape(-1, 4) * side / [width, height, width, height]
                rois = torch.from_numpy(np.insert(scaled, 0, 0, axis=1).astype(np.float32)).to(patches.device)
                features = by_boxes(patches[number : number + 1], grid_hw, tower.placement, rois)
                found.append(features.cpu().numpy())
        return found


def enlarged(box_xyxy: BoxXyxy, factor: float, size_hw: tuple[int, int]) -> BoxXyxy:
    """A box with its sides multiplied about its centre, cut off at the image's edges."""
    x0, y0, x1, y1 = box_xyxy
    by_x, by_y = (round((factor - 1) * side / 2) for side in (x1 - x0, y1 - y0))
    height, width = size_hw
    return max(0, x0 - by_x), max(0, y0 - by_y), min(width, x1 + by_x), min(height, y1 + by_y)
