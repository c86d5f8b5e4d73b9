"""Explainers that read attention weights. Their maps do not depend on the phrase: baselines for the other explainers.

Shapes: B images, P phrases, L blocks, N patches, T = N + 1 tokens, E embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.config import ExplainerConfig, ShareBelowOne
from stages.explain.maps import cosines_of
from stages.explainers.attention.walk import AttentionExplainer, BlockTensors, Walker
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.pooled import AttentionPool, Pooling


class RawAttentionConfig(ExplainerConfig):
    """The weights of the last attention."""

    kind: Literal["raw_attention"] = "raw_attention"


class RawAttention(AttentionExplainer[RawAttentionConfig]):
    """Raw attention: where the token that becomes the embedding looks in the last attention.

    With a^h_i the weight of patch i in head h, in the class token's row of the last block or in the pool's one row:

        H_i = mean over heads of a^h_i

    Papers on explaining transformers start from this baseline, such as Abnar and Zuidema (ACL 2020, arXiv 2005.00928).
    DINO (Caron et al., ICCV 2021, arXiv 2104.14294) showed it for vision transformers. Deviations: none.
    """

    config_type = RawAttentionConfig
    cost = "forward"
    follows_phrases = False

    def __init__(self, config: RawAttentionConfig, model: ClipModel) -> None:
        super().__init__(config, model, blocks=1)

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> tuple[Tensor, Tensor]:
        heat = tensors.attention[0].detach()[:, :, 0, 1:].mean(dim=1)
        return _repeat_for_phrases(heat, tensors.embedding, texts)

    def _explain_pool(self, pool: AttentionPool, pooling: Pooling, texts: Tensor) -> tuple[Tensor, Tensor]:
        return _repeat_for_phrases(pooling.attention.mean(dim=1), pool.embedding(pooling), texts)


def _repeat_for_phrases(heat: Tensor, embedding: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Heat (B, N) and embeddings (B, E) -> the same map for all phrases (B, P, N), and cosines (B, P)."""
    return heat[:, None].expand(-1, texts.shape[1], -1), cosines_of(embedding.detach(), texts)


class RolloutConfig(ExplainerConfig):
    """Attention rollout."""

    kind: Literal["rollout"] = "rollout"
    residual: ShareBelowOne = Field(
        0.5, description="Share of each token that passes a block unchanged; 0.5 in the paper."
    )


class Rollout(Walker[RolloutConfig]):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): the origin of the class token's attention.

    For block b with attention weights A_b (mean over heads, rows sum to 1) and residual share r:

        M_b = r I + (1 - r) A_b
        H = row of the class token in M_B ... M_2 M_1, over the patches

    Deviation from the paper: none at `residual: 0.5`.
    """

    config_type = RolloutConfig
    needs = "transformer blocks whose class token attends to the patches"
    cost = "forward"
    follows_phrases = False

    @torch.no_grad()
    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.cat(tensors.attention).mean(dim=1)
        share = self.config.residual
        blocks = share * torch.eye(attention.shape[-1]).to(attention) + (1 - share) * attention
        row = blocks[-1, 0]
        for block in blocks[:-1].flip(0):
            row = row @ block
        return _repeat_for_phrases(row[None, 1:], tensors.embedding, texts)
