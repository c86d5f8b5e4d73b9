"""Masked copies of an image: one set of embeddings that serves every phrase.

CLIP embeds images and texts apart, so that the embedding of a masked image does not depend on
the phrase. N masks cost N forward passes of the image tower, and the cosines with all phrases
are then one product. Masked pixels are not rounded: between the pixel and its baseline every
shade reaches the tower.

All methods here are linear in the score, so that their attribution of the unit embedding
u(mask), taken times the phrase t, is that of the cosine u . t:

    H_i = ReLU(d_i . t)        d_i: (E,), attribution of the unit embedding to cell i

A negative attribution says that a cell speaks against the phrase. It is cut to 0, because heat
is not negative.

Of a transformer's last block only the class token is computed: 512 masks cost the drawn model
340 to 510 times `encode_image`, whatever the number of phrases. Masks depend on the image, its
grid and a seed alone.

Shapes: P phrases, N cells of the tower's grid, E embedding.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.ndimage import gaussian_filter
from torch import Tensor

from stages.contract.values import Sides
from stages.explain.config import ExplainerConfig
from stages.explain.maps import Maps
from stages.explainers.attention.walk import SingleImageExplainer, TrunkTower, embedding_of, run_trunk
from stages.shared.model.towers.pooled import by_tower
from stages.shared.model.towers.tower import Tower
from stages.shared.model.towers.vision import VisionTower, attend

MASKS_PER_STEP: Final = 32
"""Masked images in one forward pass, unless a setting says otherwise."""


class PerturbationConfig(ExplainerConfig):
    """Settings of explainers that mask the image."""

    masks_per_step: int = Field(
        MASKS_PER_STEP, ge=2, le=4096, description="Masked images in one forward pass."
    )


PerturbationT = TypeVar("PerturbationT", bound=PerturbationConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedImage:
    """One image that can be masked.

    Attributes:
        tower, rgb, baseline, masks_per_step: See `masked_embeddings`.
        whole: Unit embedding without a mask, float32 (E,).
    """

    tower: Tower
    rgb: Tensor
    baseline: Tensor
    masks_per_step: int
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
        return masked_embeddings(self.tower, self.rgb, masks, self.baseline, self.masks_per_step)


class Perturbation(SingleImageExplainer[PerturbationT]):
    """An explainer that masks the image. Images that have no phrase are not masked."""

    cost = "perturbation"
    at_cells = True

    @abstractmethod
    def _attribution(self, image: MaskedImage) -> Tensor:
        """Embed an image under masks, and return d of the module's formula (N, E)."""

    @torch.no_grad()
    def _maps_of_image(self, rgb: Tensor) -> Maps:
        tower = self.model.tower
        embedding, tokens = embeddings_and_tokens(tower, rgb, self.early_block)
        image = MaskedImage(
            tower=tower,
            rgb=rgb[0],
            baseline=baseline_image(tower, rgb[0], "mean"),
            masks_per_step=self.config.masks_per_step,
            whole=F.normalize(embedding[0], dim=-1),
        )

        def heat(texts: Tensor) -> Tensor:
            if not texts.any():
                return texts.new_zeros(1, texts.shape[1], math.prod(image.grid_hw))
            return (texts @ self._attribution(image).to(texts).mT).relu()

        return Maps(heat=heat, embedding=embedding, tokens=tokens)


def baseline_image(tower: Tower, rgb: Tensor, name: Literal["mean", "black"]) -> Tensor:
    """Return the pixels of the hidden places of an image uint8 (height, width, 3), float32 in 0-255, on the device.

    mean: the mean colour of the model's normalisation. It is 0 behind that, so that a mask
    multiplies the input as in the papers of RISE and Score-CAM. black: zeros. Neither is
    neutral: a grey area is a thing that the model may know, and its effect on the embedding
    counts as the hidden cells' doing.
    """
    rgb = rgb.to(tower.device, torch.float32)
    return torch.zeros_like(rgb) if name == "black" else (tower.mean.float() * 255).expand_as(rgb)


def blur_image(rgb: Tensor, sigma_px: float) -> Tensor:
    """Blur an image float32 (height, width, 3) by a Gaussian that reaches three standard deviations.

    Places outside the image have the colour of the closest pixel on its border.
    """
    reach = max(1, math.ceil(3 * sigma_px))
    pixels = gaussian_filter(rgb.cpu().numpy(), sigma_px, mode="nearest", radius=reach, axes=(0, 1))
    return torch.from_numpy(pixels).to(rgb.device)


@torch.no_grad()
def masked_embeddings(
    tower: Tower, rgb: Tensor, masks: Tensor, baseline: Tensor, masks_per_step: int = MASKS_PER_STEP
) -> Tensor:
    """Embed an image under many masks, float32 (N, E), of unit length; the head computes in float32.

    Args:
        tower: Any image tower.
        rgb: uint8 (height, width, 3).
        masks: (N, rows, columns) of pixels, or of cells that cover the image evenly: 1 shows
            it, 0 the baseline.
        baseline: (height, width, 3) in 0-255, see `baseline_image`.
        masks_per_step: Masks in one forward pass.

    Raise ValueError if a side does not fit the tower.
    """
    hidden = baseline.to(tower.device, torch.float32)
    shown = rgb.to(tower.device, torch.float32) - hidden
    height, width = shown.shape[:2]
    down = height // masks.shape[1]
    right = width // masks.shape[2]
    embeddings = []
    for part in masks.split(masks_per_step):
        share = part.to(tower.device, torch.float32)
        share = share.repeat_interleave(down, dim=1).repeat_interleave(right, dim=2)
        embeddings.append(
            F.normalize(embeddings_and_tokens(tower, hidden + share[..., None] * shown)[0], dim=-1)
        )
    return torch.cat(embeddings)


def embeddings_and_tokens(
    tower: Tower, rgb: Tensor, block: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Embed images with a head in float32, and return the patches' tokens on the way: (B, E) in any scale, (B, N, D).

    Pixels are (B, height, width, 3) in 0-255, whole numbers or not. With a class token the
    tokens are the input of the block with this number, and on other towers the output of the
    trunk.
    """

    def of_blocks(tower: VisionTower) -> tuple[Tensor, Tensor | None]:
        last = tower.blocks[-1]
        x, early = tower.tokens_before(rgb, len(tower.blocks) - 1, block)
        class_token = x[:, :1]
        # Of the last block nothing but the class token is used, so that nothing else is computed.
        o = attend(last.project(class_token)[0], *last.project(x)[1:], last.heads)
        token = last.finish(class_token, o)[:, 0]
        return tower.head(token.float()), None if early is None else early[:, 1:]

    def of_trunk(tower: TrunkTower) -> tuple[Tensor, Tensor | None]:
        tokens, patches = run_trunk(tower, rgb)
        return embedding_of(tower, tokens, tower.grid_of(rgb)), patches

    return by_tower(tower, blocks=of_blocks, pooled=of_trunk, averaged=of_trunk)
