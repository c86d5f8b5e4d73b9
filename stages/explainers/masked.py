"""Masked copies of an image, whose embeddings serve every phrase; insertion and deletion are made of them, too.

CLIP embeds images and texts apart, so that the embedding of a masked image does not depend on
the phrase. N masks cost N forward passes of the image tower, and the cosines with all phrases
are then one product. Masked pixels are not rounded: between the pixel and its baseline every
shade reaches the tower.

An explainer here gives every cell a number that speaks for the phrase or against it, and its
map is the part that speaks for it: H_i = ReLU(value of cell i). Masks depend on the image, its
grid and a seed alone, and not on the phrases.

Shapes: P phrases, N cells of the tower's grid, E embedding.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.explain.base import ConfigT
from phrasebox.stages.explain.maps import Maps
from phrasebox.stages.explainers.walk import SingleImageExplainer
from phrasebox.stages.model.towers.dense import dense
from phrasebox.stages.model.towers.tower import Tower

MASKS_PER_STEP: Final = {"cpu": 8, "cuda": 64}
"""Masked images in one forward pass. On CPUs more are slower, because their activations no longer
fit the caches."""

DRAWN_MASKS: Final = 64  # masks of all pixels that are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedImage:
    """One image that can be masked.

    Attributes:
        tower, rgb, baseline: See `masked_embeddings`.
        whole: Unit embedding without a mask, float32 (E,).
    """

    tower: Tower
    rgb: Tensor
    baseline: Tensor
    whole: Tensor

    @property
    def size_hw(self) -> Sides:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def grid_hw(self) -> Sides:
        """Rows and columns of cells."""
        return self.tower.placement.grid_hw(*self.size_hw)

    def embeddings(self, masks: Tensor) -> Tensor:
        """Masks as `masked_embeddings` takes them -> float32 (len(masks), E), of unit length."""
        return masked_embeddings(self.tower, self.rgb, masks, self.baseline)


class Perturbation(SingleImageExplainer[ConfigT]):
    """An explainer that masks the image. Images that have no phrase are not masked."""

    cost = "perturbation"
    at_cells = True

    @abstractmethod
    def _value_cells(self, image: MaskedImage, texts: Tensor) -> Tensor:
        """Embed an image under masks, and return the values of cells for unit texts (P, E), of either sign (P, N)."""

    @torch.no_grad()
    def _maps_of_image(self, rgb: Tensor) -> Maps:
        tower = self.model.tower
        features = dense(tower, rgb, block=self.early_block)
        image = MaskedImage(
            tower=tower,
            rgb=rgb[0],
            baseline=baseline_image(tower, rgb[0]),
            whole=F.normalize(features.embedding[0], dim=-1),
        )

        def heat(texts: Tensor) -> Tensor:
            if not texts.any():
                return texts.new_zeros(1, texts.shape[1], math.prod(image.grid_hw))
            return self._value_cells(image, texts[0]).relu().to(texts)[None]

        return Maps(heat=heat, embedding=features.embedding, tokens=features.tokens)


def baseline_image(tower: Tower, rgb: Tensor) -> Tensor:
    """Return the pixels behind the masks of an image (height, width, 3), float32 in 0-255, on the device.

    They have the mean colour of the model's normalisation. It is 0 behind that, so that a mask
    multiplies the input as in the paper. It is not neutral: a grey area is an object that the
    model may know, and its effect on the embedding counts as the hidden pixels' doing.
    """
    return (tower.mean.float() * 255).expand(rgb.shape)


@torch.no_grad()
def masked_embeddings(tower: Tower, rgb: Tensor, masks: Tensor, baseline: Tensor) -> Tensor:
    """Embed an image under many masks, float32 (N, E), of unit length; the head computes in float32.

    Args:
        tower: Any image tower.
        rgb: uint8 (height, width, 3).
        masks: (N, rows, columns) of pixels, or of cells that cover the image evenly: 1 shows
            the image, 0 the baseline.
        baseline: (height, width, 3) in 0-255, see `baseline_image`.

    Raise ValueError if a side does not fit the tower.
    """
    hidden = baseline.to(tower.device, torch.float32)
    shown = rgb.to(tower.device, torch.float32) - hidden
    height, width = shown.shape[:2]
    down = height // masks.shape[1]
    right = width // masks.shape[2]
    embeddings = []
    for part in masks.split(MASKS_PER_STEP["cuda" if tower.device.type == "cuda" else "cpu"]):
        share = part.to(tower.device, torch.float32)
        share = share.repeat_interleave(down, dim=1).repeat_interleave(right, dim=2)
        pixels = hidden + share[..., None] * shown
        embeddings.append(F.normalize(dense(tower, pixels).embedding, dim=-1))
    return torch.cat(embeddings)
