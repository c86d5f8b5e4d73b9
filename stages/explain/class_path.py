"""The class token's way through transformer blocks, with the gradients at its attention.

Keys and values of the patch tokens are constants here, so a gradient touches one token per image, phrase and block
instead of N + 1. The way is computed for as many copies of the class token as there are phrases, which keeps their
gradients apart, with keys and values that all phrases of an image share.

On the text side the token that ends the text takes the class token's place, and the tokens before it the patches'.

Shapes: B images, P phrases, H heads, N patches, D width, d = D / H, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.shared.model.towers.vision import Block, VisionTower, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A block, and what its class token looks at."""

    block: Block
    heads: int  # H, the number of attention heads used
    keys: Tensor  # of the patches (B, N, D)
    values: Tensor  # (B, N, D)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPath:
    """The way of the class token. The last two are those of P copies, with the graph that their gradients need."""

    embedding: Tensor  # (B, E), not normalised
    queries: Sequence[Tensor]  # the class token's query in each block (B, D)
    embeddings: Tensor  # (B, P, E)
    attention: Sequence[Tensor]  # weights of the patches in each block (B, H, P, N)

    def gradients(self, gradient: Tensor) -> list[Tensor]:
        """dc/da of each block's class row, summed over heads (B, P, N), given dc/de of each phrase (B, P, E).

        Since o is linear in the attention weights, sum_h dc/da^h_i = sum_d (dc/do)_d v_i,d, which is Grad-ECLIP's
        channel-weighted value of patch i before the spatial weight.
        """
        found = torch.autograd.grad(self.embeddings, self.attention, gradient, retain_graph=True)
        return [each.sum(dim=1) for each in found]


def class_path(tower: VisionTower, token: Tensor, held: Sequence[Held], phrases: int) -> ClassPath:
    """Send the class token (B, D) through the last blocks of a tower, for P = `phrases`; the head is in float32."""
    queries, attention = [], []
    with torch.enable_grad():
        x = token.detach()[:, None].expand(-1, phrases, -1).requires_grad_()
        for each in held:
            q, k, v = each.block.project(x)
            query, own_key, own_value, keys, values = (
                split_heads(t, each.heads) for t in (q, k, v, each.keys, each.values)
            )
            to_self = (query * own_key).sum(dim=-1, keepdim=True)
            logits = torch.cat([to_self, query @ keys.mT], dim=-1) * query.shape[-1] ** -0.5
            own, others = logits.softmax(dim=-1).split([1, keys.shape[-2]], dim=-1)
            o = own * own_value + others @ values
            x = each.block.finish(x, o.transpose(1, 2).flatten(2))
            queries.append(q[:, 0].detach())
            attention.append(others)
        embeddings = tower.head(x)
    return ClassPath(embedding=embeddings[:, 0].detach(), queries=queries, embeddings=embeddings, attention=attention)
