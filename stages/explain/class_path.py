"""The class token's way through transformer blocks, and the gradients at its attention, written out by hand.

Keys and values of the patch tokens are constants here, so a gradient touches one token per image, phrase and block
instead of N + 1. The phrases of an image share everything but the gradient: as a further axis P of plain matrix
products they cost next to nothing, while autograd's batching copies keys and values for each phrase.

Shapes: B images, P phrases, H heads, N patches, D width, d = D / H, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.towers.layers import Activation
from stages.shared.model.towers.text import TextTower
from stages.shared.model.towers.vision import Block, VisionTower, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The tensors of one block on the way forward, float32.

    Attributes:
        block: The block's weights.
        heads: H, the number of attention heads used.
        token: (B, D), class token before the block.
        q, k, v: (B, D), its query, key and value.
        keys, values: (B, H, N, d), those of the patches.
        attention: (B, H, 1 + N), weights of the class row, with the class token first.
        middle: (B, D), class token after attention.
        hidden: (B, 4 D), its input to the activation.
    """

    block: Block
    heads: int
    token: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor
    middle: Tensor
    hidden: Tensor


def class_forward(
    block: Block, token: Tensor, keys: Tensor, values: Tensor, heads: int, unseen: Tensor | None = None
) -> tuple[Tensor, Step]:
    """Class token (B, D) and patches' keys and values (B, N, D) -> class token after the block, and the step.

    On the text side the token that ends the text takes the class token's place, and the tokens before it the patches'.
    `unseen` (B, N) is True where the token must not look.
    """
    q, k, v = block.project(token)
    keys, values = split_heads(keys, heads), split_heads(values, heads)
    query, own_key, own_value = (split_heads(t[:, None], heads) for t in (q, k, v))
    logits = torch.cat([query @ own_key.mT, query @ keys.mT], dim=-1) * query.shape[-1] ** -0.5
    if unseen is not None:
        logits = logits.masked_fill(F.pad(unseen, (1, 0))[:, None, None], -torch.inf)
    attention = logits.softmax(dim=-1)
    o = attention[..., :1] @ own_value + attention[..., 1:] @ values
    a = block.out(o.transpose(1, 2).flatten(1))
    middle = token + (a if block.ls_1 is None else a * block.ls_1)
    hidden = block.fc(block.ln_2(middle))
    m = block.proj(block.activation(hidden))
    step = Step(
        block=block,
        heads=heads,
        token=token,
        q=q,
        k=k,
        v=v,
        keys=keys,
        values=values,
        attention=attention[:, :, 0],
        middle=middle,
        hidden=hidden,
    )
    return middle + (m if block.ls_2 is None else m * block.ls_2), step


def attention_gradients(
    tower: VisionTower | TextTower, token: Tensor, steps: Sequence[Step], gradient: Tensor
) -> list[Tensor]:
    """dc/da of every block's class row, summed over heads, for the patches.

    Since o is linear in the attention weights, sum_h dc/da^h_i = sum_d (dc/do)_d v_i,d, which is Grad-ECLIP's
    channel-weighted value of patch i before the spatial weight.

    Args:
        tower: With `ln_post` and `output` in float32.
        token: (B, D), class token after the last block.
        steps: Of the explained blocks, in order.
        gradient: (B, P, E), dc/de of each phrase.

    Returns:
        (B, P, N) for each block, in order.
    """
    if tower.output is not None:
        gradient = gradient @ tower.output.T
    gradient = tower.ln_post.back(token, gradient)
    answers = []
    for number, step in reversed(list(enumerate(steps))):
        block = step.block
        inner = gradient if block.ls_2 is None else gradient * block.ls_2
        inner = Activation(block.activation).back(step.hidden, inner @ block.proj.weight)
        gradient = gradient + block.ln_2.back(step.middle, inner @ block.fc.weight)
        inner = gradient if block.ls_1 is None else gradient * block.ls_1
        per_head = split_heads(inner @ block.out.weight, step.heads)
        to_patches = per_head @ step.values.mT
        answers.append(to_patches.sum(dim=1))
        if number > 0:
            gradient = gradient + _through_attention(step, per_head, to_patches)
    return answers[::-1]


def _through_attention(step: Step, per_head: Tensor, to_patches: Tensor) -> Tensor:
    """Gradient at the block's input (B, P, D), given it at o: (B, H, P, d) and at the weights: (B, H, P, N)."""
    query, own_key, own_value = (split_heads(t[:, None], step.heads) for t in (step.q, step.k, step.v))
    to_self = per_head @ own_value.mT
    weights = step.attention[:, :, None]
    mean = weights[..., :1] * to_self + (weights[..., 1:] * to_patches).sum(dim=-1, keepdim=True)
    scale = query.shape[-1] ** -0.5
    at_self = weights[..., :1] * (to_self - mean) * scale
    at_patches = weights[..., 1:] * (to_patches - mean) * scale
    parts = (at_self @ own_key + at_patches @ step.keys, at_self @ query, weights[..., :1] * per_head)
    joined = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=-1)
    return step.block.ln_1.back(step.token, joined @ step.block.qkv.weight)
