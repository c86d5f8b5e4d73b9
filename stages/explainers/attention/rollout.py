"""Explainers that read attention weights. Their maps do not depend on the phrase: the baseline that others must beat.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens, D width, E embedding.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import ATTENDING, Explainer
from stages.explain.config import ExplainerConfig, ShareBelowOne
from stages.explain.maps import Maps, cosines_of
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.pooled import PooledTower, by_tower
from stages.shared.model.towers.vision import VisionTower, attend, split_heads


class RawAttentionConfig(ExplainerConfig):
    """The weights of the last attention."""

    kind: Literal["raw_attention"] = "raw_attention"


class RawAttention(Explainer[RawAttentionConfig]):
    """Raw attention: where the token that becomes the embedding looks in the last attention.

    With a^h_i the weight of patch i in head h, in the class token's row of the last block or in the pool's one row:

        H_i = mean over heads of a^h_i

    This is the baseline that papers on explaining transformers start from, such as Abnar and Zuidema (ACL 2020, arXiv
    2005.00928), and that DINO (Caron et al., ICCV 2021, arXiv 2104.14294) showed for vision transformers. Deviations:
    none.
    """

    config_type = RawAttentionConfig
    towers = ATTENDING
    needs = "an attention that makes the embedding"
    cost = "forward"
    follows_phrases = False

    def __init__(self, config: RawAttentionConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self._look = by_tower(
            model.tower,
            blocks=lambda tower: partial(self._at_block, tower),
            pooled=lambda tower: partial(self._at_pool, tower),
        )

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        attention, embedding, tokens = self._look(rgb)
        values = attention.mean(dim=1, keepdim=True).expand(-1, texts.shape[1], -1)
        return Maps(values=values, cosines=cosines_of(embedding, texts), tokens=tokens, embedding=embedding)

    def _at_pool(self, tower: PooledTower, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights of the patches (B, H, N), embeddings (B, E) in any scale, and `Maps.tokens`."""
        seen = tower.look(rgb)
        return seen.attention, tower.pool.embedding(seen), seen.tokens

    def _at_block(self, tower: VisionTower, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        last = tower.blocks[-1].float()
        x, early = tower.tokens_before(rgb, len(tower.blocks) - 1, self.affinity.block)
        x = x.float()
        q, k, v = (split_heads(part, last.heads) for part in last.project(x))
        attention = (q[:, :, :1] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        token = last.finish(x[:, :1], (attention @ v).transpose(1, 2).flatten(2))[:, 0]
        return attention[:, :, 0, 1:], tower.head(token), None if early is None else early[:, 1:]


class ResidualConfig(ExplainerConfig):
    """Settings of explainers that follow attention through all blocks."""

    residual: ShareBelowOne = Field(
        default=0.5, description="Share of each token that passes a block unchanged; 0.5 in the paper."
    )


class RolloutConfig(ResidualConfig):
    """Attention rollout."""

    kind: Literal["rollout"] = "rollout"


class Rollout(Explainer[RolloutConfig]):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): the origin of the class token's attention.

    For block b with attention weights A_b (mean over heads, rows sum to 1) and residual share r:

        M_b = r I + (1 - r) A_b
        H   = row of the class token in M_B ... M_2 M_1, over the patches

    Deviation from the paper: none at `residual: 0.5`.
    """

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
        identity = rolled = torch.eye(x.shape[1], device=x.device)
        early: Tensor | None = None
        for number, block in enumerate(tower.blocks):
            early = x[:, 1:] if number == self.affinity.block else early
            q, k, v = block.project(x)
            queries, keys = split_heads(q.float(), block.heads), split_heads(k.float(), block.heads)
            attention = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
            rolled = ((1 - residual) * attention + residual * identity) @ rolled
            x = block.finish(x, attend(q, k, v, block.heads))
        heat = rolled[:, :1, 1:].expand(-1, texts.shape[1], -1)
        embedding = tower.float_head().head(x[:, 0].float())
        return Maps(values=heat, cosines=cosines_of(embedding, texts), tokens=early, embedding=embedding)
