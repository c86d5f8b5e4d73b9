"""Attention weights, whatever the phrase is: the maps of all phrases are the same.

Shapes: B images, P phrases, N patches, T = N + 1 tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stages.explain.config import ExplainerConfig
from stages.explainers.attention.walk import BlockTensors, Walk, Walker
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.pooled import by_tower


@torch.no_grad()
def last_attention(model: ClipModel, rgb: Tensor) -> Tensor | None:
    """Return where the token that becomes the embedding looks in the last attention: the mean over the heads (B, N).

    Papers on explaining transformers start from this raw attention, such as Abnar and Zuidema
    (ACL 2020). DINO (Caron et al., ICCV 2021, arXiv 2104.14294) showed it for vision
    transformers.

    The images are uint8 (B, height, width, 3). None where no attention makes the embedding.
    """
    return by_tower(
        model.tower,
        blocks=lambda _: Walk(model, 1)(rgb).attention[0][:, :, 0, 1:].mean(dim=1),
        pooled=lambda tower: tower.look(rgb).attention.mean(dim=1),
        averaged=lambda _: None,
    )


class RolloutConfig(ExplainerConfig):
    """Attention rollout."""

    kind: Literal["rollout"] = "rollout"


class Rollout(Walker[RolloutConfig]):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): the origin of the class token's attention.

    For block b with attention weights A_b (mean over heads, rows sum to 1):

        M_b = (I + A_b) / 2
        H = row of the class token in M_B ... M_2 M_1, over the patches

    Deviation from the paper: none.
    """

    config_type = RolloutConfig
    needs = "transformer blocks whose class token attends to the patches"
    cost = "forward"
    follows_phrases = False

    @torch.no_grad()
    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        attention = torch.cat(tensors.attention).mean(dim=1)
        blocks = (torch.eye(attention.shape[-1]).to(attention) + attention) / 2
        row = blocks[-1, 0]
        for block in blocks[:-1].flip(0):
            row = row @ block
        return row[None, None, 1:].expand(-1, texts.shape[1], -1)
