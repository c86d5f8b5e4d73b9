"""Relevance through a transformer's blocks by the rules of Chefer, Gur and Wolf, with the relevance of each attention.

From the end of a block to its beginning, R the relevance of what comes out of each part:

    linear      R_i = sum_j (x_i W_ji)+ / sum_i' (x_i' W_ji')+ R_j         only what adds: alpha 1, beta 0; no bias
    product     z = A v:  R_A = A · (R / z) v' / 2,  R_v = v · A' (R / z) / 2;   the same for q k' sum         z = a +
    b: R_a = a / z R, and R_b = b / z R, each scaled to the share |sum R_a| / (|sum R_a| + |sum R_b|) layer norm,
    activation, softmax, LayerScale: R passes

Every rule hands on all that it gets: the relevance of a block's tokens sums to the same at both ends. The rules of
products and sums divide by what may be near zero. Where that happens the method is ill-conditioned: on a random network
of the tests the relevance of a row of attention changes its sign when weights change by a ten-thousandth.

Deviation: the sums of the last rule but one are over the tokens of one image; the authors' code takes them over the
batch.

Shapes: one image, H heads, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from stages.shared.model.towers.layers import Linear
from stages.shared.model.towers.vision import Block, split_heads

_TINY: Final = 1e-9
"""Added to the size of what is divided by, as the authors' code has it."""


def share(relevance: Tensor, total: Tensor) -> Tensor:
    """Relevance for each unit of the total that it is shared out by; none where the total is zero."""
    safe = total + torch.where(total < 0, -_TINY, _TINY)
    return torch.where(total == 0, 0.0, relevance / safe)


@dataclass(frozen=True, slots=True)
class AddingLinear:
    """A linear layer that hands relevance to what added to its output.

    Attributes:
        weight: (out, in).
        x: (1, T, in), what went in.
        total: (1, T, out), the sum of what added.
    """

    weight: Tensor
    x: Tensor
    total: Tensor

    @classmethod
    def of(cls, linear: Linear, x: Tensor) -> AddingLinear:
        """With what went into it."""
        weight = linear.weight
        total = x.clamp(min=0) @ weight.clamp(min=0).T + x.clamp(max=0) @ weight.clamp(max=0).T
        return cls(weight, x, total)

    def __call__(self, relevance: Tensor) -> Tensor:
        """Relevance (1, T, out) of what came out -> (1, T, in)."""
        unit = share(relevance, self.total)
        above, below = unit @ self.weight.clamp(min=0), unit @ self.weight.clamp(max=0)
        return self.x.clamp(min=0) * above + self.x.clamp(max=0) * below


def through_product(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the product a b -> of a and b, one half each."""
    unit = share(relevance, a @ b) / 2
    return a * (unit @ b.mT), b * (a.mT @ unit)


def through_sum(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of a + b -> of a and of b."""
    unit = share(relevance, a + b)
    at_a, at_b = a * unit, b * unit
    in_a, in_b = at_a.sum(), at_b.sum()
    size = in_a.abs() + in_b.abs()
    whole = share(relevance.sum(), size)
    return at_a * share(in_a.abs() * whole, in_a), at_b * share(in_b.abs() * whole, in_b)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRelevance:
    """A block with what went through it, ready to be gone through backwards any number of times.

    Attributes:
        heads: H.
        attention: (1, H, T, T).
        queries, keys, values: (1, H, T, D / H).
        before, added: (1, T, D), the residual stream and what attention adds to it.
        between, more: (1, T, D), the stream behind attention and what the MLP adds to it.
        qkv, out, fc, proj: the linear layers.
    """

    heads: int
    attention: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    before: Tensor
    added: Tensor
    between: Tensor
    more: Tensor
    qkv: AddingLinear
    out: AddingLinear
    fc: AddingLinear
    proj: AddingLinear

    @classmethod
    def of(cls, block: Block, x: Tensor, attention: Tensor) -> BlockRelevance:
        """A float32 block, the tokens (1, T, D) that go into it, and its attention (1, H, T, T)."""
        z = block.ln_1(x)
        q, k, v = (split_heads(part, block.heads) for part in block.qkv(z).chunk(3, dim=-1))
        o = (attention @ v).transpose(1, 2).flatten(2)
        a = block.out(o)
        added = a if block.ls_1 is None else a * block.ls_1
        between = x + added
        normed = block.ln_2(between)
        active = block.activation(block.fc(normed))
        m = block.proj(active)
        return cls(
            heads=block.heads,
            attention=attention,
            queries=q,
            keys=k,
            values=v,
            before=x,
            added=added,
            between=between,
            more=m if block.ls_2 is None else m * block.ls_2,
            qkv=AddingLinear.of(block.qkv, z),
            out=AddingLinear.of(block.out, o),
            fc=AddingLinear.of(block.fc, normed),
            proj=AddingLinear.of(block.proj, active),
        )

    def __call__(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance (1, T, D) of the tokens behind the block -> of those before it, and of its attention (1, H, T,
        T)."""
        stream, branch = through_sum(self.between, self.more, relevance)
        stream, branch = through_sum(self.before, self.added, stream + self.fc(self.proj(branch)))
        at_output = split_heads(self.out(branch), self.heads)
        at_attention, at_values = through_product(self.attention, self.values, at_output)
        at_queries, at_keys = through_product(self.queries, self.keys.mT, at_attention)
        parts = [part.transpose(1, 2).flatten(2) for part in (at_queries, at_keys.mT, at_values)]
        return stream + self.qkv(torch.cat(parts, dim=-1)), at_attention
