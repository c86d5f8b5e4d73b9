"""Class activation maps: features that have a place, weighed by the gradient of the cosine at them.

Features x_1 .. x_N of width D are the last tokens of a tower that still have a place in the image:

- of a transformer with a class token, the patches after `ln_1` of the last block. At that
  block's output there is nothing to read: only the class token goes on;
- of a tower with one attention as its pool, the grid at the end of its convolutions, or without
  a grid the tokens before the pool. Positions and a mean token are added behind that grid, so
  the gradient also goes through the mean;
- of a tower that averages its tokens, those tokens.

c is the cosine of image and text embedding, not scaled, and g_i = dc/dx_i comes from autograd
through the rest of the tower.

Shapes: B images (1 where gradients are taken), P phrases, N patches, T tokens, D width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.explain.base import ConfigT, Explainer
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.maps import Maps, gradients_at_embedding
from phrasebox.stages.explainers.walk import (
    SingleImageExplainer,
    Trace,
    Walk,
    phrase_gradients,
    trace_tokens,
)
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.layers import gradient_at
from phrasebox.stages.model.towers.pooled import TrunkTower, by_tower
from phrasebox.stages.model.towers.trunk import GridTrunk


class CamConfig(ExplainerConfig):
    """Class activation maps of towers that average their tokens."""

    kind: Literal["cam"] = "cam"


class Cam(Explainer[CamConfig]):
    """Class activation maps for towers that average their tokens.

    With tokens x_1 .. x_N, their mean m = sum_i x_i / N, and the rest of the tower as a
    function of m:

        w   = dc / dm                                     one weight per channel
        H_i = ReLU(w . x_i)

    Where the head is one linear layer and the score is not normalised, this is CAM (Zhou et
    al., CVPR 2016, arXiv 1512.04150), with the text embedding as the class's weights; it is
    Grad-CAM at the last features (Selvaraju et al., ICCV 2017, arXiv 1610.02391), because the
    gradient at each token is w / N. Deviation from Grad-CAM: the factor 1 / N alone.
    """

    config_type = CamConfig
    towers = ("average_pool",)
    needs = "tokens that are averaged"

    def __init__(self, config: CamConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self.tower = by_tower(model.tower, averaged=lambda tower: tower)

    @torch.no_grad()
    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        tokens = self.tower.embed(rgb).float()
        mean = tokens.mean(dim=1)
        embedding = self.tower.finish(mean)

        def heat(texts: Tensor) -> Tensor:
            gradients = gradient_at(self.tower.finish, mean, gradients_at_embedding(embedding, texts))
            return F.relu(gradients @ tokens.mT)

        return Maps(
            heat=heat,
            embedding=embedding,
            tokens=tokens,
            embed_patches=lambda: self.tower.finish(tokens),
        )


class FeatureCam(SingleImageExplainer[ConfigT]):
    """Maps from the features and the gradient at them."""

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        super().__init__(config, model)
        self._trace = feature_tracer(model, self.early_block)

    @abstractmethod
    def _weigh(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Features (N, D) and a phrase's gradient at them (N, D) -> its map (N,), >= 0."""

    def _maps_of_image(self, rgb: Tensor) -> Maps:
        cells = math.prod(self.model.tower.grid_of(rgb))
        with torch.enable_grad():
            trace = self._trace(rgb)

        def heat(texts: Tensor) -> Tensor:
            features = trace.features[0, -cells:].detach()
            gradients = phrase_gradients(trace.embedding, [trace.features], texts)
            return torch.stack([self._weigh(features, gradient[0, -cells:]) for (gradient,) in gradients])[
                None
            ]

        tokens = None if trace.tokens is None else trace.tokens[:, -cells:]
        return Maps(heat=heat, embedding=trace.embedding.detach(), tokens=tokens)


def feature_tracer(model: ClipModel, early_block: int | None = None) -> Callable[[Tensor], Trace]:
    """Return what traces one image, uint8 (1, height, width, 3), from the features of the module's formula."""
    return by_tower(
        model.tower,
        blocks=lambda _: partial(_trace_block, Walk(model, 1, early_block)),
        pooled=lambda tower: partial(_trace_trunk, tower),
        averaged=lambda tower: partial(_trace_trunk, tower),
    )


def _trace_block(walk: Walk, rgb: Tensor) -> Trace:
    tensors = walk(rgb)
    return Trace(tensors.normed[0], tensors.embedding, tensors.early)


def _trace_trunk(tower: TrunkTower, rgb: Tensor) -> Trace:
    """Trace an image from the end of the trunk, or from the grid in which its convolutions end."""
    trunk = tower.trunk
    if not isinstance(trunk, GridTrunk):
        return trace_tokens(tower, rgb)
    grid_hw = tower.grid_of(rgb)
    grid = trunk.body(tower.normalise(rgb).to(tower.dtype))
    features = grid.flatten(2).transpose(1, 2).float().requires_grad_()
    tokens = trunk.tokens_of(features, grid_hw)
    return Trace(features, tower.embedding_of(tokens, grid_hw), tokens.detach())


class GradCamConfig(ExplainerConfig):
    """Grad-CAM."""

    kind: Literal["grad_cam"] = "grad_cam"


class GradCam(FeatureCam[GradCamConfig]):
    """Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391): features weighed by their mean gradient.

        w   = mean over i of g_i                          one weight per channel
        H_i = ReLU(w . x_i)

    The paper has convolutional features; for transformers this is the usual reading: the
    patches at the last block's first norm, without the class token, as pytorch-grad-cam and
    CLIP-ES (Lin et al., CVPR 2023, arXiv 2212.09506) take them. The Grad-ECLIP authors'
    baseline takes the block's input before the norm, and averages over the class token too.
    Where tokens are averaged, the map is that of `Cam` divided by N.

    Deviations: the score is the plain cosine, where CLIP-ES takes a softmax over a set of texts.
    """

    config_type = GradCamConfig

    def _weigh(self, features: Tensor, gradient: Tensor) -> Tensor:
        return (features @ gradient.mean(dim=0)).relu()


class GradCamPlusPlusConfig(ExplainerConfig):
    """Grad-CAM++."""

    kind: Literal["grad_cam_plus_plus"] = "grad_cam_plus_plus"


class GradCamPlusPlus(FeatureCam[GradCamPlusPlusConfig]):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, arXiv 1710.11063): features weighed where gradients are positive.

    With g_i = s dc/dx_i, channel by channel:

        a_i = g_i^2 / (2 g_i^2 + S g_i^3) = 1 / (2 + S g_i)         S = sum over i of x_i; 0 where g_i = 0
        w   = sum over i of a_i ReLU(g_i)                           one weight per channel
        H_i = ReLU(w . x_i)

    The paper's score is the exponential of the network's output, whose second and third
    derivatives are then powers of the first; its own factor is the same for all patches and is
    left out. The network's output is taken to be CLIP's logit: the cosine times s, the model's
    scale, which decides how much S counts. Without it a_i is one half almost everywhere.

    Deviation: S is at least 0. The paper's features come out of a ReLU, so that it cannot be
    less; with features that can be negative, as in transformers, the denominator would vanish
    somewhere. Where features are >= 0 nothing differs.
    """

    config_type = GradCamPlusPlusConfig

    def _weigh(self, features: Tensor, gradient: Tensor) -> Tensor:
        positive = (self.model.logit_scale * gradient).relu()
        total = features.sum(dim=0).relu()
        return (features @ (positive / (2 + total * positive)).sum(dim=0)).relu()
