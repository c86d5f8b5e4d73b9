"""What the class activation maps that go by gradients have in common: features that have a place, and dc/d(features).

Features x_1 .. x_N of width D are what stands last in a tower and still has a place in the image:

- of a transformer with a class token, the patches after `ln_1` of one of the last blocks, where its queries, keys and
  values come from. At a block's output there is nothing to read in the last one: only the class token goes on;
- of a tower whose tokens are pooled by one attention, the features that the pool is made for: the grid in which the
  convolutions end (before positions and a mean token are added, so that the gradient also takes the way through the
  mean), or the trunk's tokens where there is no grid: of a transformer of timm's those before the pool or, where its
  class token asks, before its last block;
- of a tower that averages its tokens, those tokens.

c is the cosine of image and text embedding, not scaled, and g_i = dc/dx_i comes from autograd through all that is
behind. One image is taken at a time, so that its maps have the same bits whatever its neighbours are.

Shapes: B images (1 here), P phrases, N patches, T tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps
from stages.explain.config import ExplainerConfig
from stages.explainers.attention.walk import Walk, gradients_at, image_by_image, starts_of
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import TowerKind
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.trunk import GridTrunk


class FeaturesConfig(ExplainerConfig):
    """Settings of class activation maps by gradients."""

    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    layer: Annotated[int, Field(ge=1)] = 1
    """With a class token: the block after whose first norm the features are taken, counted from the last, which is 1.
    Other towers have it without effect: their last features are taken."""


FeaturesT = TypeVar("FeaturesT", bound=FeaturesConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One image's features, and what they become.

    Attributes:
        leaf: (1, T, D), what is differentiated by; it may hold tokens that are no patches.
        first: How many of its first tokens are no patches.
        embedding: (1, E), in the leaf's graph.
        tokens: See `Maps.tokens`.
    """

    leaf: Tensor
    first: int
    embedding: Tensor
    tokens: Tensor | None


class FeatureCam(Explainer[FeaturesT]):
    """Maps from the features and the gradient at them; a method says how. `similarity` is the cosine.

    Raises ConfigError for a layer that the model has not.
    """

    towers: ClassVar[tuple[TowerKind, ...]] = ("class_token", "attention_pool", "latent_pool", "average_pool")
    needs = "features that have a place"
    cost = "backward"

    def __init__(self, config: FeaturesT, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        self.walk: Walk | None = None
        self.tower: PooledTower | AveragedTower | None = None
        if isinstance(tower, PooledTower | AveragedTower):
            self.tower = tower.float_head()
        else:
            self.walk = Walk(model, self.config.layer, self.affinity.block, setting="layer")

    @abstractmethod
    def weighed(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Features (N, D) and a phrase's gradient at them (N, D) -> its map (N,), >= 0."""

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return image_by_image(self._of_image, rgb, texts)

    def _of_image(self, rgb: Tensor, texts: Tensor) -> Maps:
        found = self._features(rgb)
        starts, cosines = starts_of(found.embedding, texts, self.config.phrases_per_step)
        features = found.leaf.detach()[0, found.first :]
        values = [
            self.weighed(features, gradient[0, found.first :])
            for (gradient,) in gradients_at(found.embedding, [found.leaf], starts)
        ]
        return Maps(torch.stack(values)[None], cosines, None, found.tokens, found.embedding.detach())

    @torch.enable_grad()
    def _features(self, rgb: Tensor) -> Features:
        tower = self.tower
        if tower is None:
            assert self.walk is not None  # noqa: S101
            walked = self.walk(rgb)
            return Features(leaf=walked.normed[0], first=1, embedding=walked.embedding, tokens=walked.early)
        if isinstance(tower, AveragedTower):
            leaf = tower.embed(rgb).float().requires_grad_()
            embedding = tower.finish(leaf.mean(dim=1))
            return Features(leaf=leaf, first=0, embedding=embedding, tokens=leaf.detach())
        grid_hw = tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
        if isinstance(tower.trunk, GridTrunk):
            with torch.no_grad():
                grid = tower.trunk.body(tower.normalised(rgb).to(tower.dtype))
            first, leaf = 0, grid.flatten(2).transpose(1, 2).float().requires_grad_()
            tokens = tower.trunk.tokens_of(leaf, grid_hw)
        else:
            first, leaf = tower.pool.others, tower.embed(rgb).float().requires_grad_()
            tokens = leaf
        seen = tower.pool.look(tokens, grid_hw)
        return Features(leaf=leaf, first=first, embedding=tower.pool.embedding(seen), tokens=seen.tokens.detach())
