"""Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): where the class token's attention comes from.

For block b with attention weights A_b (mean over heads, rows sum to 1) and residual share r:

    M_b = r I + (1 - r) A_b
    H   = row of the class token in M_B ... M_2 M_1, over the patches

The map does not depend on the phrase: all phrases of an image get the same one. That makes it the baseline that an
explainer of phrases has to beat. It needs no gradient; its cost is the trunk and one (T, T) product a block.

Deviation from the paper: none at `residual: 0.5`. `contrast` is 0, because it compares the maps of phrases.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosines_of
from stages.explain.config import ExplainerConfig
from stages.shared.model.towers.vision import VisionTower, attend, split_heads


class RolloutConfig(ExplainerConfig):
    """Attention rollout."""

    kind: Literal["rollout"] = "rollout"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    residual: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of each token that passes a block unchanged; 0.5 in the paper."""


class Rollout(Explainer[RolloutConfig]):
    """Attention rollout over all blocks. `similarity` is the cosine of image and phrase."""

    config_type = RolloutConfig
    towers = ("class_token",)
    needs = "transformer blocks whose class token attends to the patches"
    cost = "forward"
    follows_phrases = False

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        tower, residual = self.model.tower, self.config.residual
        assert isinstance(tower, VisionTower)  # noqa: S101
        x = tower.embed(rgb)
        rolled: Tensor | None = None
        early: Tensor | None = None
        for number, block in enumerate(tower.blocks):
            early = x[:, 1:] if number == self.affinity.block else early
            q, k, v = block.project(x)
            queries, keys = split_heads(q.float(), block.heads), split_heads(k.float(), block.heads)
            attention = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
            step = (1 - residual) * attention + residual * torch.eye(attention.shape[-1], device=attention.device)
            rolled = step if rolled is None else step @ rolled
            x = block.finish(x, attend(q, k, v, block.heads))
        assert rolled is not None, "a transformer has blocks"  # noqa: S101
        heat = rolled[:, :1, 1:].expand(-1, texts.shape[1], -1)
        embedding = tower.float_head().head(x[:, 0].float())
        return Maps(heat, cosines_of(embedding, texts), None, early, embedding)
