"""An embedding for each box of images, from its part of the image or from the image's dense features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.stage import Forwards
from phrasebox.stages.contract.values import Floats32, PixelBox, Rgb
from phrasebox.stages.images.crops import crop_regions
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.device import (
    Batches,
    PendingTransfer,
    pixels_on,
    retry_on_oom,
    to_device,
)
from phrasebox.stages.model.towers.dense import dense, pool_boxes

BoxedImage = tuple[Rgb, Sequence[PixelBox]]
"""A canvas, uint8 (H, W, 3), and boxes in it."""


class BoxEmbedder(ABC):
    """Embeds boxes of images, `size` images, or parts of images, in a forward pass.

    If a GPU's memory does not hold a pass, the passes are halved for the rest of the worker's life.
    """

    def __init__(self, model: ClipModel, size: int) -> None:
        self.model = model
        self._batches = Batches(size, "model", "a larger GPU")
        self._images = 0

    @torch.no_grad()
    def __call__(self, images: Sequence[BoxedImage]) -> list[Floats32]:
        """Return the unit embeddings (boxes, E) of each image. Raise ResourceError if memory does not hold one pass."""
        embeddings = retry_on_oom(
            range(len(images)),
            lambda numbers: iter(self._embed([images[n] for n in numbers])),
            self._batches.shrink,
        )
        return [boxes for _, boxes in embeddings]

    @abstractmethod
    def _embed(self, images: Sequence[BoxedImage]) -> list[Floats32]: ...

    def take_forwards(self) -> Forwards:
        """See `Stage.take_forwards`."""
        forwards = Forwards(images=self._images, device=self.model.device_name)
        self._images = 0
        return forwards

    def _passes(self, squares: Iterable[Rgb]) -> Iterator[Tensor]:
        """Yield batches uint8 (B, side, side, 3) on the model's device."""
        remaining = iter(squares)
        while batch := list(islice(remaining, self._batches.size)):
            self._images += len(batch)
            yield pixels_on(batch, self.model.device)

    @staticmethod
    def _collect(passes: Iterable[Sequence[Tensor]]) -> Iterator[Floats32]:
        """Yield the embeddings of passes. It starts the next pass before it waits for one."""
        pending: deque[PendingTransfer] = deque()
        for tensors in passes:
            pending.append(PendingTransfer(tensors))
            if len(pending) > 1:
                yield from pending.popleft().wait()
        for last in pending:
            yield from last.wait()

    def _squares(self, canvas: Rgb, boxes: Sequence[PixelBox]) -> Rgb:
        """Return parts of an image at the size of the model's input; see `crop_regions`."""
        height, width = canvas.shape[:2]
        spec = self.model.input
        shares = [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes]
        return crop_regions(canvas, shares, spec.size_px, spec.interpolation)


class CropEmbedder(BoxEmbedder):
    """The embedding of each box's part of the image: one forward pass for each box."""

    def _embed(self, images: Sequence[BoxedImage]) -> list[Floats32]:
        parts = (part for canvas, boxes in images for part in self._squares(canvas, boxes))
        passes = (
            [F.normalize(self.model.tower.encode(batch).float(), dim=-1)] for batch in self._passes(parts)
        )
        rows = (row for embeddings in self._collect(passes) for row in embeddings)
        return [np.array(list(islice(rows, len(boxes))), np.float32) for _, boxes in images]


class RoiEmbedder(BoxEmbedder):
    """RoIAlign on the dense features of the whole image: one forward pass for all boxes of an image."""

    def _embed(self, images: Sequence[BoxedImage]) -> list[Floats32]:
        tower = self.model.tower
        side = self.model.input.size_px
        grid_hw = tower.placement.grid_hw(side, side)
        remaining = iter(images)
        wholes = (
            self._squares(canvas, [(0, 0, canvas.shape[1], canvas.shape[0])])[0] for canvas, _ in images
        )

        def passes() -> Iterator[list[Tensor]]:
            for batch in self._passes(wholes):
                patches = dense(tower, batch).patches
                embeddings = []
                for number, (canvas, boxes) in enumerate(islice(remaining, len(batch))):
                    height, width = canvas.shape[:2]
                    scaled = (
                        np.array(boxes, np.float64).reshape(-1, 4) * side / [width, height, width, height]
                    )
                    rois = to_device(
                        torch.from_numpy(np.insert(scaled, 0, 0, axis=1).astype(np.float32)), tower.device
                    )
                    embeddings.append(
                        pool_boxes(patches[number : number + 1], grid_hw, tower.placement, rois)
                    )
                yield embeddings

        return list(self._collect(passes()))
