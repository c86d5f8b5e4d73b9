"""Rules of relevance propagation, as layers with the usual outputs and with relevance as their gradients.

Layer-wise relevance propagation (Bach et al., PLoS ONE 2015) shares the score out among a
layer's inputs in proportion to their parts of the output. For every rule here there is a layer
with the same output for which

    R = x · g                                   relevance is the input times the gradient that arrives at it

so that relevance needs no pass of its own: a tower made of such layers is differentiated as any
other. Factors that are held have no gradient, and a factor that is halved has half of it.

    linear         z = x Wᵀ + b           R_i = sum_j x_i W_ji / z_j R_j          epsilon rule, epsilon 0
    layer norm     (x - mean) / sd        sd is held                              Ali et al. 2022, AttnLRP
    activation     x · (f(x) / x)         the gate f(x) / x is held               AttnLRP: relevance passes
    product        u · v                  both are halved                         AttnLRP: the uniform rule
    softmax        s of logits x          nothing: R_i' = x_i (R_i - s_i sum R)   AttnLRP: Taylor at the logits

Sources: AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602), and for the norm Ali et al.
(ICML 2022, arXiv 2202.07304).

Biases and softmax keep relevance: the sum over all inputs is the score less their parts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

import torch
from torch import Tensor

from phrasebox.stages.model.towers.layers import (
    Activation,
    Chain,
    GatedUnit,
    Layer,
    LayerNorm,
    Residual,
    TensorFunction,
)
from phrasebox.stages.model.towers.pooled import AttentionPool
from phrasebox.stages.model.towers.vision import (
    Block,
    Heads,
    VisionTower,
    attention_weights,
    join_heads,
    split_heads,
)

CLAIM: Final = (
    "layer-wise relevance propagation is claimed to be patented, and to be free of charge for "
    "personal and scientific purposes only (the README of LXT, "
    "github.com/rachtibat/LRP-eXplains-Transformers)"
)
"""See `Explainer.claim`."""

_NEAR_ZERO: Final = 1e-6
"""Inputs of an activation that are nearer to zero have the gate of this one."""


@dataclass(frozen=True, slots=True)
class DetachedNorm(LayerNorm):
    """A `LayerNorm` whose standard deviation has no gradient."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        y = (x - mean) * (variance + self.eps).rsqrt().detach() * self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True)
class HalvedGatedUnit(GatedUnit):
    """A `GatedUnit` whose two factors share relevance by halves."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return halve_gradient(self.activation(self.gate(x))) * halve_gradient(self.up(x))


def halve_gradient(x: Tensor) -> Tensor:
    """Return the same numbers with half of their gradient.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> torch.autograd.grad(halve_gradient(x), x)
    (tensor(0.5000),)
    """
    half = x * 0.5
    return half + half.detach()


def detach_gate(function: TensorFunction) -> TensorFunction:
    """Return the same activation, as its input times a gate that has no gradient."""

    def activation(x: Tensor) -> Tensor:
        with torch.no_grad():
            divisor = torch.where(x.abs() < _NEAR_ZERO, _NEAR_ZERO, x)
            gate = function(divisor) / divisor
        return x * gate

    return activation


def attend_by_rules(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Attend as `towers.vision.attend`: (B, Tq, D) and (B, T, D) twice -> (B, Tq, D), and weights (B, H, Tq, T)."""
    queries, keys, values = (halve_gradient(split_heads(x, heads)) for x in (q, k, v))
    weights = halve_gradient(attention_weights(queries, keys))
    return join_heads(weights @ values), weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledPool(AttentionPool):
    """An `AttentionPool` whose products share relevance by halves."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """See `AttentionPool.attend`."""
        output, weights = attend_by_rules(query[:, None], keys, values, heads)
        return output[:, 0], weights[:, :, 0]


def detach_norm(norm: LayerNorm) -> LayerNorm:
    """Return the norm of the same weights whose standard deviation has no gradient."""
    return DetachedNorm(norm.weight, norm.bias, norm.eps)


def chain_by_rules(chain: Chain) -> Chain:
    """Replace layers one after the other by those of their rules."""
    return Chain(tuple(map(layer_by_rules, chain.layers)))


def layer_by_rules(layer: Layer) -> Layer:
    """Replace any layer of a head by that of its rule. Layers without a rule are linear."""
    match layer:
        case Chain():
            return chain_by_rules(layer)
        case Residual():
            return Residual(chain_by_rules(layer.inner))
        case LayerNorm():
            return detach_norm(layer)
        case Activation():
            return Activation(detach_gate(layer.function))
        case GatedUnit():
            return HalvedGatedUnit(layer.gate, layer.up, Activation(detach_gate(layer.activation.function)))
    return layer


def tower_by_rules(tower: VisionTower) -> VisionTower:
    """Return a transformer by the rules, in float32 behind the patches; blocks attend with `attend_by_rules`."""
    exact = tower.float_head()
    return replace(
        exact,
        ln_pre=layer_by_rules(tower.ln_pre.float()),
        blocks=tuple(_block_by_rules(block.float()) for block in tower.blocks),
        ln_post=detach_norm(exact.ln_post),
    )


def _block_by_rules(block: Block) -> Block:
    return replace(
        block,
        ln_1=detach_norm(block.ln_1),
        ln_2=detach_norm(block.ln_2),
        activation=detach_gate(block.activation),
    )


def pool_by_rules(pool: AttentionPool) -> AttentionPool:
    """Return a pool by the rules, in float32."""
    exact = pool.float()
    return replace(
        RuledPool(**{field.name: getattr(exact, field.name) for field in fields(exact)}),
        norm=layer_by_rules(exact.norm),
        scale=chain_by_rules(exact.scale),
        out=layer_by_rules(exact.out),
        finish=chain_by_rules(exact.finish),
    )
