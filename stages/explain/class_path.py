"""The class token's path through transformer blocks, with the gradients at its attention.

Keys and values of the patch tokens are constants here, so a gradient touches one token per
image, phrase and block instead of N + 1. Each phrase has a copy of the class token, which keeps
gradients apart. All phrases of an image share keys and values.

Shapes: B images, P phrases, H heads, N patches, D width, d = D / H, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.shared.model.device import allow_tf32
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
class ExplainedBlocks:
    """The tensors of the explained blocks in one forward pass, with an entry for each block and without a graph.

    Attributes:
        embedding: Embeddings of the images (B, E), not normalised.
        queries: The class token's queries (B, D).
        keys, values: Those of the patches (B, N, D).
        attention_gradients: Gradients dc/de of the phrases (B, P, E) -> sum_d w_d v_i,d of each block
            (B, P, N), w = dc/do.
    """

    embedding: Tensor
    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    attention_gradients: Callable[[Tensor], Sequence[Tensor]]


def trace_class_token(
    tower: VisionTower, token: Tensor, inputs: Sequence[BlockInputs], phrases: int
) -> ExplainedBlocks:
    """Send the class token (B, D) through the last blocks of a tower, for P = `phrases`; the head is in float32.

    The output o of a block is linear in its attention weights a, so that sum_d w_d v_i,d is
    dc/da_i, summed over heads.
    """
    queries = []
    attention = []
    with torch.enable_grad(), allow_tf32(tower):
        x = token.detach()[:, None].expand(-1, phrases, -1).requires_grad_()
        for block_inputs in inputs:
            q, k, v = block_inputs.block.project(x)
            query, class_key, class_value, keys, values = (
                split_heads(t, block_inputs.heads)
                for t in (q, k, v, block_inputs.keys, block_inputs.values)
            )
            to_self = (query * class_key).sum(dim=-1, keepdim=True)
            logits = torch.cat([to_self, query @ keys.mT], dim=-1) * query.shape[-1] ** -0.5
            class_weight, patch_weights = logits.softmax(dim=-1).split([1, keys.shape[-2]], dim=-1)
            o = class_weight * class_value + patch_weights @ values
            x = block_inputs.block.finish(x, o.transpose(1, 2).flatten(2))
            queries.append(q[:, 0].detach())
            attention.append(patch_weights)
        embeddings = tower.head(x)

    def attention_gradients(gradient: Tensor) -> Sequence[Tensor]:
        with allow_tf32(tower):
            gradients = torch.autograd.grad(embeddings, attention, gradient, retain_graph=True)
        return [block.sum(dim=1) for block in gradients]

    return ExplainedBlocks(
        embedding=embeddings[:, 0].detach(),
        queries=queries,
        keys=[block_inputs.keys for block_inputs in inputs],
        values=[block_inputs.values for block_inputs in inputs],
        attention_gradients=attention_gradients,
    )
