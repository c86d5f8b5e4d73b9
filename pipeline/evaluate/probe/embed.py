"""Images and their regions -> embeddings.

A region is embedded in three ways, as CLIPSelf (arXiv 2310.01403, zero-shot evaluation of regions) does it: RoIAlign of
the dense features in its box, the mean of the dense features on its mask, and the image of the box alone.

Shapes: B images, R regions of an image, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.evaluate.probe.config import ProbeConfig
from pipeline.evaluate.probe.questions import Questions
from pipeline.load.region_masks import grid_shares
from stages.contract.geometry import Box
from stages.contract.masks import run_ends
from stages.contract.records import Rle
from stages.shared.images.crops import cut_out
from stages.shared.model.clip import ClipModel
from stages.shared.model.texts import TextCache, templates_of
from stages.shared.model.towers.dense import by_boxes, by_masks, dense

BATCH_IMAGES: Final = {"cpu": 8, "cuda": 64}
"""Images of one forward pass, unless `model.batch_size` says it. A batch is filled up with blank images, so that no
embedding depends on how many images there are."""

TEXTS_AT_ONCE: Final = 512

Embeddings = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image that was opened.

    Attributes:
        rgb: uint8 (size, size, 3), whole, at the model's size.
        full: uint8 (H, W, 3), in its own size; None where no region is cut out.
        asked: Its questions.
    """

    rgb: NDArray[np.uint8]
    full: NDArray[np.uint8] | None
    asked: Questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Embeddings of an image and its regions, float32 of length 1.

    Attributes:
        image: (E,).
        roi: (R, E).
        mask: (R, E), zeros for a region without a mask or with an empty one.
        crop: (R, E); None where nobody asked.
    """

    image: Embeddings
    roi: Embeddings
    mask: Embeddings
    crop: Embeddings | None


class Embedder:
    """Embeds images, regions and texts with one model, which it only reads."""

    def __init__(self, model: ClipModel, config: ProbeConfig, batch_images: int | None = None) -> None:
        self.model = model
        self.config = config
        self.batch_images = batch_images or BATCH_IMAGES["cuda" if model.device.type == "cuda" else "cpu"]
        self._texts = TextCache(model, max_texts=TEXTS_AT_ONCE)

    def classes(self, names: Sequence[str]) -> Embeddings:
        """Names -> (names, E), the mean over `ProbeConfig.prompts`, of length 1."""
        cache = TextCache(self.model, templates_of(self.config.prompts))
        return self._all(cache, names)

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts as they are -> (texts, E), of length 1."""
        return self._all(self._texts, texts)

    def _all(self, cache: TextCache, texts: Sequence[str]) -> Embeddings:
        parts = [cache(texts[at : at + TEXTS_AT_ONCE]).cpu().numpy() for at in range(0, len(texts), TEXTS_AT_ONCE)]
        found: Embeddings = np.concatenate([np.zeros((0, self.model.embed_dim), np.float32), *parts])
        return found

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Picture]) -> list[Embedded]:
        """Embed at most `batch_images` images with their regions.

        An image's embeddings depend on the others of the batch in the last digit at most.
        """
        side = self.model.input.size_px
        missing = self.batch_images - len(pictures)
        rgb = np.stack([*(picture.rgb for picture in pictures), *[np.zeros((side, side, 3), np.uint8)] * missing])
        found = dense(self.model.tower, torch.from_numpy(rgb), residual=self.config.residual)
        placement = self.model.tower.placement
        grid_hw = placement.grid_hw(side, side)
        owners = np.repeat(np.arange(len(pictures)), [len(picture.asked.boxes_rel) for picture in pictures])
        boxes = np.concatenate([picture.asked.boxes_rel for picture in pictures]) * side
        rois = torch.from_numpy(np.column_stack([owners, boxes]).astype(np.float32)).to(self.model.device)
        roi = _numpy(by_boxes(found.patches, grid_hw, placement, rois))
        image = _numpy(F.normalize(found.embedding.float(), dim=-1))
        crops = self._crops(pictures) if self.config.crops else None
        answers = []
        for number, picture in enumerate(pictures):
            own = owners == number
            answers.append(
                Embedded(
                    image=image[number],
                    roi=roi[own],
                    mask=self._by_masks(found.patches[number], picture.asked.masks, grid_hw),
                    crop=None if crops is None else crops[own],
                )
            )
        return answers

    def _by_masks(self, patches: torch.Tensor, masks: Sequence[Rle | None], grid_hw: tuple[int, int]) -> Embeddings:
        known = [number for number, mask in enumerate(masks) if mask is not None]
        found = np.zeros((len(masks), self.model.embed_dim), np.float32)
        if known:
            shares = torch.from_numpy(shares_of([mask for mask in masks if mask is not None], grid_hw))
            shares = shares.to(patches.device)
            found[known] = _numpy(by_masks(patches.expand(len(known), -1, -1), shares))
        return found

    def _crops(self, pictures: Sequence[Picture]) -> Embeddings:
        """(all regions, E), the regions of all images one after the other."""
        side, parts = self.model.input.size_px, []
        scale, interpolation = self.config.crop_scale, self.model.input.interpolation
        for batch in _batches(pictures, self.batch_images):
            rgb = np.zeros((self.batch_images, side, side, 3), np.uint8)
            for place, (picture, box) in enumerate(batch):
                assert picture.full is not None, "images whose regions are cut out come in full"  # noqa: S101
                rgb[place] = cut_out(picture.full, [box], side, interpolation, scale)[0]
            embeddings = self.model.tower.encode(torch.from_numpy(rgb)).float()
            parts.append(_numpy(F.normalize(embeddings, dim=-1))[: len(batch)])
        found: Embeddings = np.concatenate([np.zeros((0, self.model.embed_dim), np.float32), *parts])
        return found


def shares_of(masks: Sequence[Rle], grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each cell of a grid that is inside, (masks, rows, columns); the masks have one size."""
    texts = [np.frombuffer(mask.counts.encode("ascii"), np.uint8) for mask in masks]
    offsets = np.cumsum([0, *map(len, texts)])
    size_hw = masks[0].size_hw
    pixels = np.full(len(masks), size_hw[0] * size_hw[1], np.int64)
    ends, starts = run_ends(np.concatenate(texts), offsets, pixels)
    return grid_shares(ends, starts, size_hw, grid_hw)


def _batches(pictures: Sequence[Picture], size: int) -> Iterator[list[tuple[Picture, Box]]]:
    batch: list[tuple[Picture, Box]] = []
    for picture in pictures:
        for x0, y0, x1, y1 in picture.asked.boxes_rel.tolist():
            batch.append((picture, (x0, y0, x1, y1)))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def _numpy(values: torch.Tensor) -> Embeddings:
    found: Embeddings = values.cpu().numpy()
    return found
