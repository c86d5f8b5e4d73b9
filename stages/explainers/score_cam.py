"""Score-CAM: class activation maps without gradients, with the image's own features as masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from phrasebox.stages.contract.geometry import resize_shifted
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explainers.cams import feature_tracer
from phrasebox.stages.explainers.masked import DRAWN_MASKS, MaskedImage, Perturbation
from phrasebox.stages.model.clip import ClipModel


class ScoreCamConfig(ExplainerConfig):
    """Score-CAM."""

    kind: Literal["score_cam"] = "score_cam"
    channels: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Most channels, those that vary most over the image; all in the paper.",
    )
    weights: Literal["gains", "softmax"] = Field(
        "gains",
        description="`gains`: by how much a channel's mask raises the cosine, the definition in the paper's text. "
        "`softmax`: the softmax of the model's logits over the channels, the paper's algorithm and its code.",
    )


class ScoreCam(Perturbation[ScoreCamConfig]):
    """Score-CAM (Wang et al., CVPR workshops 2020, arXiv 1910.01279): the image's own features as its masks.

    Features x_1 .. x_N are those of `cams`. Channel k, drawn over the image and stretched to
    0-1, is a mask. With c_k the cosine of the image under it, c_0 that of the baseline, and s
    the model's logit scale:

        w_k = c_k - c_0                               or softmax over k of s c_k (`weights: softmax`)
        H_i = ReLU(sum over k of w_k x_i,k)

    A channel that is the same everywhere hides everything.

    Deviations from the paper: only the `channels` that vary most over the image (a number above
    the width restores the paper), because a tower may have some thousand channels and each is
    one forward pass; gains in place of their softmax (`weights: softmax` restores the paper's
    algorithm); the cosine in place of the class's score. With these two settings the map is that
    of pytorch-grad-cam, but for the enlargement of channels: there their corners lie in the
    corners of the image, and here values lie where tokens look.
    """

    config_type = ScoreCamConfig
    at_cells = False

    def __init__(self, config: ScoreCamConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self._trace = feature_tracer(model)

    def _value_cells(self, image: MaskedImage, texts: Tensor) -> Tensor:
        features = self._trace(image.rgb[None]).features.detach()[0, -math.prod(image.grid_hw) :]
        channels = varied_channels(features, self.config.channels)
        embeddings = [image.embeddings(masks) for masks in _draw_masks(channels, image)]
        cosines = torch.cat(embeddings).double() @ texts.T.double()
        if self.config.weights == "softmax":
            weights = (self.model.logit_scale * cosines).softmax(dim=0)
        else:
            baseline = image.embeddings(torch.zeros(1, *image.grid_hw)).double() @ texts.T.double()
            is_varied = channels.amax(dim=1) > channels.amin(dim=1)
            weights = torch.where(is_varied[:, None], cosines - baseline, 0.0)  # the rest is rounding
        return weights.T @ channels.double()


def varied_channels(features: Tensor, most: int) -> Tensor:
    """Features (N, D) -> the channels (K, N) that vary most, in the tower's order."""
    spread = features.std(dim=0, correction=0)
    channels = spread.argsort(descending=True, stable=True)[:most].sort().values
    return features[:, channels].mT.contiguous()


def _draw_masks(channels: Tensor, image: MaskedImage) -> Iterator[Tensor]:
    """Channels (K, N) -> masks (up to `DRAWN_MASKS`, height, width) in 0 .. 1, drawn where their tokens look."""
    shift = image.tower.placement.shift_cells
    for part in channels.split(DRAWN_MASKS):
        grids = part.unflatten(1, image.grid_hw).cpu().numpy()
        drawn = torch.from_numpy(np.stack([resize_shifted(grid, image.size_hw, shift) for grid in grids]))
        masks = drawn - drawn.amin(dim=(1, 2), keepdim=True)
        highest = masks.amax(dim=(1, 2), keepdim=True)
        yield torch.where(highest > 0, masks / highest, 0.0)
