"""Masked copies of an image: one set of embeddings that serves every phrase.

CLIP embeds images and texts apart, so that the embedding of a masked image does not depend on the phrase. N masks cost
N forward passes of the image tower, and the cosines with all phrases are then one product. Masked pixels are not
rounded: between the pixel and its baseline every shade reaches the tower.

Where a method is linear in the score, as RISE, occlusion and Shapley values are, its attribution of the unit embedding
u(mask), taken times the phrase t, is its attribution of the cosine u . t:

    H_i = ReLU(d_i . t)        d_i: (E,), attribution of the unit embedding to cell i

A negative attribution says that a cell speaks against the phrase. It is cut to 0, because heat is not negative.

Of a transformer's last block only the class token is computed: 512 masks cost the drawn model 340 to 510 times
`encode_image`, whatever the number of phrases. Masks depend on the image, its grid and a seed alone.

Shapes: P phrases, N cells of the tower's grid, E embedding.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer
from stages.explain.config import ExplainerConfig, Share
from stages.explain.maps import Maps, cosines_of
from stages.explainers.attention.walk import image_by_image
from stages.shared.model.towers.pooled import AveragedTower, PooledTower, by_tower
from stages.shared.model.towers.tower import Tower
from stages.shared.model.towers.vision import VisionTower, attend

MASKS_PER_STEP: Final = 32
"""Masked images in one forward pass, unless a setting says otherwise."""

BaselineName = Literal["mean", "blur", "black"]
"""The pixels of a hidden place. No baseline is neutral: a grey area is a thing that the model may know, and its effect
on the embedding counts as the hidden cells' doing.

mean: the mean colour of the model's normalisation. It is 0 behind that, so that a mask multiplies the input as in the
papers of RISE and Score-CAM. blur: the image, blurred, which keeps its colours and loses its things. black: zeros.
"""

Attribution = Callable[[Tensor], Tensor]
"""Unit text embeddings (P, E) -> attribution (P, N) of their cosines to the cells."""


class PerturbationConfig(ExplainerConfig):
    """Settings of explainers that mask the image."""

    baseline: BaselineName = Field(default="mean", description="The pixels of a hidden place, see BaselineName.")
    blur: Share = Field(
        default=0.05, description="With `baseline: blur`: its standard deviation as a share of the shorter side."
    )
    masks_per_step: int = Field(default=MASKS_PER_STEP, ge=2, le=4096, description="Masked images in one forward pass.")


PerturbationT = TypeVar("PerturbationT", bound=PerturbationConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedImage:
    """One image that can be masked.

    Attributes:
        tower, rgb, baseline, masks_per_step: See `masked_embeddings`.
        whole: float32 (E,), the unit embedding with no mask.
    """

    tower: Tower
    rgb: Tensor
    baseline: Tensor
    masks_per_step: int
    whole: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.tower.placement.grid_hw(*self.size_hw)

    def embeddings(self, masks: Tensor) -> Tensor:
        """Masks as `masked_embeddings` takes them -> float32 (len(masks), E), of unit length."""
        return masked_embeddings(self.tower, self.rgb, masks, self.baseline, self.masks_per_step)


class Perturbation(Explainer[PerturbationT]):
    """An explainer that masks the image. Images that have no phrase are not masked."""

    cost = "perturbation"
    at_cells = True

    @abstractmethod
    def attribution(self, image: MaskedImage) -> Attribution:
        """Embed an image under masks, and return the attribution of any phrase's cosine to the cells."""

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return image_by_image(self._of_image, rgb, texts)

    def _of_image(self, rgb: Tensor, texts: Tensor) -> Maps:
        config, tower = self.config, self.model.tower
        embedding, tokens = embeddings_and_tokens(tower, rgb, self.affinity.block)
        rows, columns = tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
        values = texts.new_zeros(1, texts.shape[1], rows * columns)
        if texts.any():
            image = MaskedImage(
                tower=tower,
                rgb=rgb[0],
                baseline=baseline_image(tower, rgb[0], config.baseline, config.blur),
                masks_per_step=config.masks_per_step,
                whole=F.normalize(embedding[0], dim=-1),
            )
            attribution = self.attribution(image)
            values = torch.cat([attribution(step) for step in texts[0].split(config.phrases_per_step)])[None].relu()
        return Maps(values=values, cosines=cosines_of(embedding, texts), tokens=tokens, embedding=embedding)


def along(directions: Tensor) -> Attribution:
    """Return the attribution of a method that is linear in the score, given that of the unit embedding: (N, E)."""
    exact = directions.float()
    return lambda texts: texts @ exact.mT


def baseline_image(tower: Tower, rgb: Tensor, name: BaselineName, blur: float = 0.05) -> Tensor:
    """Return the pixels of an image's hidden places, float32 (height, width, 3) in 0-255, on the tower's device.

    Args:
        tower: Whose normalisation is used.
        rgb: uint8 (height, width, 3).
        name: See `BaselineName`.
        blur: Standard deviation of the blur, as a share of the shorter side.
    """
    rgb = rgb.to(tower.device, torch.float32)
    if name == "blur":
        return blurred(rgb, blur * min(rgb.shape[:2]))
    if name == "black":
        return torch.zeros_like(rgb)
    return (tower.mean.float() * 255).expand_as(rgb)


def blurred(rgb: Tensor, sigma_px: float) -> Tensor:
    """Blur an image float32 (height, width, 3) by a Gaussian that reaches three standard deviations.

    Places outside the image have the colour of the closest pixel on its border.
    """
    reach = max(1, math.ceil(3 * sigma_px))
    offsets = torch.arange(-reach, reach + 1, device=rgb.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    x = rgb.permute(2, 0, 1)[:, None]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None, :])
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return x[:, 0].permute(1, 2, 0)


@torch.no_grad()
def masked_embeddings(
    tower: Tower, rgb: Tensor, masks: Tensor, baseline: Tensor, masks_per_step: int = MASKS_PER_STEP
) -> Tensor:
    """Embed an image under many masks, float32 (N, E), of unit length; the head computes in float32.

    Args:
        tower: Any image tower.
        rgb: uint8 (height, width, 3), sides that fit the tower.
        masks: (N, height, width), or (N, rows, columns) in cells of one size that cover the image: 1 shows the image, 0
            the baseline, and values between mix them.
        baseline: (height, width, 3) in 0-255, see `baseline_image`.
        masks_per_step: Masks in one forward pass.

    Raises ValueError if the masks' cells do not cover the image evenly, or a side does not fit the tower.
    """
    hidden = baseline.to(tower.device, torch.float32)
    shown = rgb.to(tower.device, torch.float32) - hidden
    height, width = shown.shape[:2]
    down, right = height // masks.shape[1], width // masks.shape[2]
    if (masks.shape[1] * down, masks.shape[2] * right) != (height, width):
        raise ValueError(
            f"expected masks whose cells cover {width}x{height} px, got {masks.shape[2]}x{masks.shape[1]} cells"
        )
    parts = []
    for part in masks.split(masks_per_step):
        share = part.to(tower.device, torch.float32)
        share = share.repeat_interleave(down, dim=1).repeat_interleave(right, dim=2)
        parts.append(F.normalize(embeddings_and_tokens(tower, hidden + share[..., None] * shown)[0], dim=-1))
    return torch.cat(parts)


def embeddings_and_tokens(tower: Tower, rgb: Tensor, kept: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Embed images with a head in float32, and return the patches' tokens on the way: (B, E) in any scale, (B, N, D).

    Args:
        tower: Any image tower.
        rgb: Pixels (B, height, width, 3) in 0-255, whole numbers or not.
        kept: With a class token: the block whose incoming tokens are returned. Other towers return those before the
            pool.
    """

    def of_blocks(tower: VisionTower) -> tuple[Tensor, Tensor | None]:
        last = tower.blocks[-1]
        x, early = tower.tokens_before(rgb, len(tower.blocks) - 1, kept)
        asking = x[:, :1]
        # Of the last block nothing but the class token is used, so that nothing else is computed.
        o = attend(last.project(asking)[0], *last.project(x)[1:], last.heads)
        token = last.finish(asking, o)[:, 0]
        return tower.head(token.float()), None if early is None else early[:, 1:]

    def of_pool(tower: PooledTower) -> tuple[Tensor, Tensor | None]:
        seen = tower.look(rgb)
        return tower.pool.embedding(seen), seen.tokens

    def of_mean(tower: AveragedTower) -> tuple[Tensor, Tensor | None]:
        tokens = tower.embed(rgb).float()
        return tower.finish(tokens.mean(dim=1)), tokens

    return by_tower(tower, blocks=of_blocks, pooled=of_pool, averaged=of_mean)
