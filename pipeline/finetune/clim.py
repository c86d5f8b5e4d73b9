"""CLIM (Wu and others, AAAI 2024, arXiv 2312.11376): mosaics of whole images, whose cells are regions with captions.

No box is needed: k x k images of the batch are put together into one, and the feature of each cell is compared with the
captions of the batch. What is different: images and captions are those of a batch of a few dozen, not of several
thousand; the single images are compared with their captions by CLIP's own embedding and not by the box of the whole
image; all mosaics of a step have the same k; patches are without the last block's residual and MLP
(`recipe.residual=true` restores them).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.finetune.config import Learns, RecipeConfig
from pipeline.finetune.material import TrainingBatch
from pipeline.finetune.ranks import RankGroup
from pipeline.finetune.recipe import Recipe, Terms, caption_loss, matched


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
        fitting = [side for side in config.sides if side * side <= len(rgb)]
        side = fitting[int(np.random.default_rng(batch.seeds[:2]).integers(len(fitting)))] if fitting else 1
        canvas, rois = mosaics(rgb, side)
        cells = ranks.everyone(student.regions(student.see(canvas, residual=config.residual), canvas, rois))
        terms["mosaics"] = (config.mosaic_weight, matched(student, cells, batch.captions[: len(rois)], ranks))
        return terms


def mosaics(rgb: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Put images uint8 (B, height, width, 3) together, `side` x `side` in each mosaic, row by row.

    Images that fill no whole mosaic are left out. Return mosaics of the images' size, and the cells as boxes, float
    (cells, 5): mosaic, x0, y0, x1, y1 in px. Where the sides are no multiples, some cells are a pixel larger.
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
