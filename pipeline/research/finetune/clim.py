"""CLIM (Wu and others, AAAI 2024, arXiv 2312.11376): mosaics of whole images with a caption for each cell.

No box is needed: k x k images of the batch become one mosaic, and the feature of a cell is compared with the captions
of the batch. Differences from the paper:

- a batch has a few dozen images, not several thousand;
- single images are compared with their captions by CLIP's embedding, not by the box of the whole image;
- all mosaics of a step have the same k;
- patches are without the last block's residual and MLP (`recipe.residual=true` restores them).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.research.finetune.config import Learns, RecipeConfig
from pipeline.research.finetune.material import TrainingBatch
from pipeline.research.finetune.ranks import RankGroup
from pipeline.research.finetune.recipe import Recipe, Terms, caption_loss, pair_loss


class ClimConfig(RecipeConfig):
    """Mosaics of whole images."""

    kind: Literal["clim"] = "clim"
    learns: Learns = Field("image", description="See RecipeConfig; this recipe has no texts of regions.")
    mosaic_weight: float = Field(1.0, gt=0, description="Weight of the loss between cells and captions.")
    sides: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (2, 3, 4),
        min_length=1,
        description="Images along a side of a mosaic; one of these is drawn for each step. Those that need more images "
        "than a rank has are left out.",
    )
    residual: bool = Field(False, description="See `AlignConfig`.")


class Clim(Recipe[ClimConfig]):
    """The loss between images and captions, and the one between cells of mosaics and captions."""

    config_type = ClimConfig

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        student = self.student
        config = self.config
        rgb = batch.rgb.to(student.device)
        terms: Terms = {}
        if config.caption_weight:
            embedding = student.tower.encode(rgb)
            terms["captions"] = (config.caption_weight, caption_loss(student, embedding, batch.captions, ranks))
        sides = [side for side in config.sides if side * side <= len(rgb)]
        side = sides[int(np.random.default_rng(batch.seeds[:2]).integers(len(sides)))] if sides else 1
        canvas, rois = mosaics(rgb, side)
        cells = ranks.gather_rows(student.regions(student.encode(canvas, residual=config.residual), canvas, rois))
        terms["mosaics"] = (config.mosaic_weight, pair_loss(student, cells, batch.captions[: len(rois)], ranks))
        return terms


def mosaics(rgb: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Make mosaics of images, uint8 (B, height, width, 3): `side` x `side` images each, row by row.

    Return mosaics of the images' size, and their cells as boxes, float (cells, 5): mosaic, x0, y0, x1, y1 in px. Images
    that fill no whole mosaic are left out. If the sides are no multiples of `side`, some cells are a pixel larger.
    """
    count = len(rgb) // side**2
    height, width = rgb.shape[1:3]
    x, y = (torch.linspace(0, length, side + 1).round().int().tolist() for length in (width, height))
    canvas = rgb.new_zeros(count, height, width, 3)
    rois = []
    pixels = rgb.permute(0, 3, 1, 2).float()
    for mosaic in range(count):
        for cell in range(side**2):
            row, column = divmod(cell, side)
            top = y[row]
            bottom = y[row + 1]
            left = x[column]
            right = x[column + 1]
            image = pixels[mosaic * side**2 + cell : mosaic * side**2 + cell + 1]
            small = F.interpolate(image, (bottom - top, right - left), mode="bilinear", antialias=True)
            canvas[mosaic, top:bottom, left:right] = small[0].round().clamp(0, 255).permute(1, 2, 0).to(rgb.dtype)
            rois.append([mosaic, left, top, right, bottom])
    return canvas, torch.tensor(rois, dtype=torch.float32).reshape(-1, 5)
