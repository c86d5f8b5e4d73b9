"""The class token's path through transformer blocks, with the gradients at its attention.

Keys and values of the patch tokens are constants here, so a gradient touches one token per image, phrase and block
instead of N + 1. Each phrase has a copy of the class token, which keeps gradients apart. All phrases of an image share
keys and values.

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
class BlockInputs:
    """A block, and the keys and values that its class token attends to.

    Attributes:
        block: The block.
        heads: Number of attention heads, H.
        keys: Keys of the patches (B, N, D).
        values: Values of the patches (B, N, D).
    """

    block: Block
    heads: int
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTokenPath:
    """The path of the class token, and of P copies of it with the graph that gradients need.

    Attributes:
        embedding: Embedding (B, E), not normalised, without a graph.
        queries: The class token's query in each block (B, D), without a graph.
        embeddings: Embeddings of the copies (B, P, E).
        attention: Weights of the patches in each block, for each copy (B, H, P, N).
    """

    embedding: Tensor
    queries: Sequence[Tensor]
    embeddings: Tensor
    attention: Sequence[Tensor]

    def gradients(self, gradient: Tensor) -> list[Tensor]:
        """Return dc/da of each block's class row, summed over heads (B, P, N), given dc/de of each phrase (B, P, E).

        Since o is linear in the attention weights, sum_h dc/da^h_i = sum_d (dc/do)_d v_i,d, which is Grad-ECLIP's
        channel-weighted value of patch i before the spatial weight.
        """
        gradients = torch.autograd.grad(self.embeddings, self.attention, gradient, retain_graph=True)
        return [block.sum(dim=1) for block in gradients]


def trace_class_token(tower: VisionTower, token: Tensor, inputs: Sequence[BlockInputs], phrases: int) -> ClassTokenPath:
    """Send the class token (B, D) through the last blocks of a tower, for P = `phrases`; the head is in float32."""
    queries = []
    attention = []
    with torch.enable_grad():
        x = token.detach()[:, None].expand(-1, phrases, -1).requires_grad_()
        for block_inputs in inputs:
            q, k, v = block_inputs.block.project(x)
            query, class_key, class_value, keys, values = (
                split_heads(t, block_inputs.heads) for t in (q, k, v, block_inputs.keys, block_inputs.values)
            )
            to_self = (query * class_key).sum(dim=-1, keepdim=True)
            logits = torch.cat([to_self, query @ keys.mT], dim=-1) * query.shape[-1] ** -0.5
            class_weight, patch_weights = logits.softmax(dim=-1).split([1, keys.shape[-2]], dim=-1)
            o = class_weight * class_value + patch_weights @ values
            x = block_inputs.block.finish(x, o.transpose(1, 2).flatten(2))
            queries.append(q[:, 0].detach())
            attention.append(patch_weights)
        embeddings = tower.head(x)
    return ClassTokenPath(
        embedding=embeddings[:, 0].detach(), queries=queries, embeddings=embeddings, attention=attention
    )
