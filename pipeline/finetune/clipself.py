"""CLIPSelf (Wu and others, ICLR 2024, arXiv 2310.01403): patches learn the model's embeddings of image crops.

The model that training began with embeds crops of an image, and the features of the boxes of these crops learn to point
the same way: 1 - cos. Neither texts nor boxes are needed: the boxes are the cells of a random grid.

What is different: images come at twice the model's side instead of 1,024 px, crops are enlarged to the model's side,
and patches are without the last block's residual and MLP (`recipe.residual=true` restores them).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.finetune.config import Learns, RecipeConfig
from pipeline.finetune.material import TrainingBatch
from pipeline.finetune.ranks import RankGroup
from pipeline.finetune.recipe import Recipe, Terms, caption_loss


class ClipSelfConfig(RecipeConfig):
    """Crop self-distillation."""

    kind: Literal["clipself"] = "clipself"
    learns: Learns = Field("image", description="See RecipeConfig; this recipe has no texts of regions.")
    caption_weight: float = Field(0.0, ge=0, description="CLIPSelf has no loss with captions.")
    distil_weight: float = Field(1.0, gt=0, description="Weight of the loss between boxes and crops.")
    most_splits: int = Field(6, ge=1, le=16, description="A grid has 1 to this many rows, and so with columns.")
    most_boxes: int = Field(
        20,
        ge=1,
        le=256,
        description="Most cells of an image, drawn if there are more. Each is a forward pass of the model.",
    )
    residual: bool = Field(False, description="See `AlignConfig`.")


class ClipSelf(Recipe[ClipSelfConfig]):
    """The loss between features of boxes and the start model's embeddings of their crops."""

    config_type = ClipSelfConfig
    needs_start = True
    enlarged = 2

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        student, config = self.student, self.config
        large = batch.rgb.to(student.device)
        side = large.shape[1] // self.enlarged
        rgb = resized(large, side)
        boxes = [
            grid_boxes(np.random.default_rng((*batch.seeds, image)), config.most_splits, config.most_boxes)
            for image in range(len(large))
        ]
        rois = torch.tensor(
            [[image, *(side * share for share in box)] for image, own in enumerate(boxes) for box in own.tolist()]
        )
        seen = student.see(rgb, residual=config.residual)
        regions = student.regions(seen, rgb, rois)
        losses = 1 - (regions * self._taught(large, rois * rois.new_tensor([1, *[self.enlarged] * 4]))).sum(dim=-1)
        terms: Terms = {"crops": (config.distil_weight, ranks.everyone(losses).mean())}
        if config.caption_weight:
            terms["captions"] = (config.caption_weight, caption_loss(student, seen.embedding, batch.captions, ranks))
        return terms

    @torch.no_grad()
    def _taught(self, large: Tensor, rois: Tensor) -> Tensor:
        """Return the start model's embeddings of the crops: (R, E), of length 1."""
        assert self.start is not None, "the recipe says that it needs the start model"  # noqa: S101
        side = large.shape[1] // self.enlarged
        crops = torch.cat([resized(crop_of(large, roi), side) for roi in rois.tolist()])
        parts = [self.start.tower.encode(part) for part in crops.split(max(1, len(large)))]
        return F.normalize(torch.cat(parts).float(), dim=-1)


def crop_of(rgb: Tensor, roi: list[float]) -> Tensor:
    """Return the pixels (1, h, w, 3) of a box: image, x0, y0, x1, y1 in px; at least one pixel each way."""
    image, left, top, right, bottom = (round(value) for value in roi)
    return rgb[image : image + 1, top : max(bottom, top + 1), left : max(right, left + 1)]


def resized(rgb: Tensor, side: int) -> Tensor:
    """uint8 (B, height, width, 3) -> uint8 (B, side, side, 3)."""
    pixels = rgb.permute(0, 3, 1, 2).float()
    square = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return square.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


def grid_boxes(rng: np.random.Generator, most_splits: int, most_boxes: int) -> NDArray[np.float64]:
    """Return at most so many cells of a random grid as shares of the image's sides: (boxes, 4), x0, y0, x1, y1."""
    rows, columns = rng.integers(1, most_splits + 1, 2).tolist()
    taken = np.sort(rng.permutation(rows * columns)[:most_boxes])
    y, x = np.divmod(taken, columns)
    return np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=1)
