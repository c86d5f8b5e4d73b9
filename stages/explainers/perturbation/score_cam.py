"""Score-CAM (Wang et al., CVPR workshops 2020, arXiv 1910.01279): the image's own features as its masks.

Each channel k of the last tokens, drawn over the image and stretched to 0-1, is a mask M_k. With A_k(i) the channel at
token i, c_k the cosine under its mask, and c_0 that of the baseline:

    w_k = c_k - c_0
    H_i = ReLU(sum_k w_k A_k(i))

The tokens are those before the last block of a transformer with a class token, and those before the pool elsewhere.

That is the definition in the paper's text; its algorithm puts a softmax over the channels in between, as the code in
use does. With `weights: softmax` w_k is the softmax of `sharpness` times these increases: 100 is what CLIP multiplies
its cosines by, and with 1 all channels weigh nearly alike. On drawn scenes both forms find the thing as often, and with
the increases more of the heat lies on it (.48 to .36; 18 phrases of 10 scenes, all channels of the drawn model).

Deviations from the paper: of the channels only the `channels` that vary most over the image, because a tower has up to
some thousand and each is one forward pass (a number above the width restores the paper); the cosine in place of the
class's score. The cost is `channels` forward passes for each image, however many its phrases.

Shapes: K channels, N tokens, P phrases, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stages.contract.geometry import resize_shifted
from stages.explainers.perturbation.explainer import Attribution, MaskedImage, Perturbation, PerturbationConfig, along
from stages.explainers.perturbation.masked import embeddings_and_tokens
from stages.shared.model.towers.vision import VisionTower


class ScoreCamConfig(PerturbationConfig):
    """Score-CAM."""

    kind: Literal["score_cam"] = "score_cam"

    channels: Annotated[int, Field(ge=1, le=100_000)] = 256
    """At most so many channels, those that vary most over the image; each is one forward pass. The paper takes all."""

    weights: Literal["increase", "softmax"] = "increase"
    """A channel's weight: how much the cosine under its mask lies above the baseline's, or the softmax of that over the
    channels, as in the paper's algorithm."""

    sharpness: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0
    """With `weights: softmax`: what the cosines are multiplied by; 100 is CLIP's own scale."""


class ScoreCam(Perturbation[ScoreCamConfig]):
    """Score-CAM: masks made of the image's own features."""

    config_type = ScoreCamConfig
    at_cells = False

    def attribution(self, image: MaskedImage) -> Attribution:
        """See `Perturbation.attribution`."""
        config = self.config
        channels = loudest_channels(tokens_of(image), config.channels)
        low, high = channels.amin(dim=1, keepdim=True), channels.amax(dim=1, keepdim=True)
        stretched = torch.where(high > low, (channels - low) / (high - low), 0.0)
        nothing = image.embeddings(torch.zeros(1, *image.grid_hw))
        gains = torch.cat([image.embeddings(masks) for masks in _drawn_masks(stretched, image)]) - nothing
        # A channel that is the same everywhere hides everything, and what is left is rounding.
        gains = torch.where(high > low, gains, 0.0)
        if config.weights == "increase":
            return along(channels.mT.double() @ gains.double())
        return lambda texts: (config.sharpness * texts @ gains.mT).softmax(dim=-1) @ channels


def tokens_of(image: MaskedImage) -> Tensor:
    """The last tokens that stand for places, float32 (N, D)."""
    tower = image.tower
    number = len(tower.blocks) - 1 if isinstance(tower, VisionTower) else None
    tokens = embeddings_and_tokens(tower, image.rgb[None], number)[1]
    assert tokens is not None, "every tower that a method is defined on has tokens"  # noqa: S101
    return tokens[0].float()


def loudest_channels(tokens: Tensor, most: int) -> Tensor:
    """Tokens (N, D) -> the channels (K, N) that vary most, in the tower's order."""
    spread = tokens.std(dim=0, correction=0)
    chosen = spread.argsort(descending=True, stable=True)[:most].sort().values
    return tokens[:, chosen].mT.contiguous()


def _drawn_masks(stretched: Tensor, image: MaskedImage) -> Iterator[Tensor]:
    """Channels (K, N) -> masks (up to `masks_per_step`, height, width), drawn where their tokens look."""
    shift = image.tower.placement.shift_cells
    for part in stretched.split(image.masks_per_step):
        grids = part.unflatten(1, image.grid_hw).cpu().numpy()
        yield torch.from_numpy(np.stack([resize_shifted(grid, image.size_hw, shift) for grid in grids]))
