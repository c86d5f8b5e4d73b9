"""The class token's way through the last blocks, and gradients back along it, for many phrases at once.

Keys and values of the patch tokens are constants here, so a gradient touches one token per image, phrase and
block instead of N + 1. The gradients are written out by hand, because the phrases of an image share everything but the
gradient: as a further axis P of plain matrix products they cost next to nothing, while autograd's batching copies keys
and values for each phrase. The tests compare with autograd in float64.

Shapes: B images, P phrases, H heads, N patches, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.model.vision import Block, LayerNorm, VisionTower, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one block leaves behind on the way forward, float32.

    Attributes:
        block: The block's weights.
        heads: H, the number of attention heads used.
        token: (B, D), class token before the block.
        q, k, v: (B, D), its query, key and value.
        keys, values: (B, H, N, d), those of the patches.
        attention: (B, H, 1 + N), weights of the class row, with the class token first.
        middle: (B, D), class token after attention.
        hidden: (B, 4 D), before the activation.
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


def forward(block: Block, token: Tensor, keys: Tensor, values: Tensor, heads: int) -> tuple[Tensor, Step]:
    """Class token (B, D) and patches' keys and values (B, N, D) -> class token after the block, and the step."""
    q, k, v = block.project(token)
    keys, values = split_heads(keys, heads), split_heads(values, heads)
    query, own_key, own_value = (split_heads(t[:, None], heads) for t in (q, k, v))
    scale = query.shape[-1] ** -0.5
    logits = torch.cat([query @ own_key.mT, query @ keys.mT], dim=-1) * scale
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


def attention_gradients(tower: VisionTower, token: Tensor, steps: Sequence[Step], gradient: Tensor) -> list[Tensor]:
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
    gradient = _through_norm(tower.ln_post, token, gradient)
    answers = []
    for number, step in reversed(list(enumerate(steps))):
        block = step.block
        inner = gradient if block.ls_2 is None else gradient * block.ls_2
        inner = (inner @ block.proj.weight) * _slope(step)[:, None]
        gradient = gradient + _through_norm(block.ln_2, step.middle, inner @ block.fc.weight)
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
    parts = (
        at_self @ own_key + at_patches @ step.keys,
        at_self @ query,
        weights[..., :1] * per_head,
    )
    joined = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=-1)
    return _through_norm(step.block.ln_1, step.token, joined @ step.block.qkv.weight)


def _through_norm(norm: LayerNorm, x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient (B, P, D) at the input x (B, D) of a layer norm, given it at the output."""
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    inverse = (variance + norm.eps).rsqrt()
    unit = ((x - mean) * inverse)[:, None]
    g = gradient * norm.weight
    return inverse[:, None] * (g - g.mean(dim=-1, keepdim=True) - unit * (g * unit).mean(dim=-1, keepdim=True))


def _slope(step: Step) -> Tensor:
    """Derivative of the activation at `hidden`, whatever the activation is."""
    with torch.enable_grad():
        hidden = step.hidden.detach().requires_grad_()
        (slope,) = torch.autograd.grad(step.block.activation(hidden).sum(), hidden)
    return slope
