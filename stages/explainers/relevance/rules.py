"""Rules of relevance propagation, as layers with the usual outputs and with relevance as their gradients.

Layer-wise relevance propagation (Bach et al., PLoS ONE 2015) shares the score out among a layer's inputs in proportion
to their parts of the output. For every rule here there is a layer with the same output for which

    R = x · g                                   relevance is the input times the gradient that arrives at it

so that relevance needs no pass of its own: a tower made of such layers is differentiated as any other. Factors that are
held have no gradient, and a factor that is halved has half of it.

    linear         z = x Wᵀ + b           R_i = sum_j x_i W_ji / z_j R_j          epsilon rule, epsilon 0
    gamma          z = x Wᵀ + b           W and b + gamma · (their part of z_j's sign) in place of W and b
    layer norm     (x - mean) / sd        sd is held                              Ali et al. 2022, AttnLRP
    activation     x · (f(x) / x)         the gate f(x) / x is held               AttnLRP: relevance passes
    product        u · v                  both are halved                         AttnLRP: the uniform rule
    softmax        s of logits x          nothing: R_i' = x_i (R_i - s_i sum R)   AttnLRP: Taylor at the logits
    attention      A v                    `conservative`: A is held instead, all relevance goes to v

Sources: AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602); conservative propagation (Ali et al., ICML 2022, arXiv
2202.07304); the gamma rule for inputs of both signs as Zennit has it (Anders et al., arXiv 2106.13200).

Biases and softmax keep relevance: the sum over all inputs is the score less their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.config import ExplainerConfig
from stages.shared.model.towers.layers import Activation, Chain, GatedUnit, Layer, LayerNorm, Linear, Residual
from stages.shared.model.towers.pooled import AttentionPool
from stages.shared.model.towers.vision import Block, Heads, VisionTower, split_heads

CLAIM: Final = (
    "layer-wise relevance propagation is claimed to be patented, and to be free of charge for personal and scientific "
    "purposes only (the README of LXT, github.com/rachtibat/LRP-eXplains-Transformers)"
)
"""See `Explainer.claim`."""

_NEAR_ZERO: Final = 1e-6
"""Inputs of an activation that are nearer to zero have the gate of this one."""


class RelevanceConfig(ExplainerConfig):
    """Settings of all explainers that propagate relevance by these rules."""

    rule: Literal["attnlrp", "conservative"] = Field(
        "attnlrp",
        description="Relevance in an attention. `attnlrp`: one half goes to the attention weights and on to queries "
        "and keys, the other to the values. `conservative`: all of it goes to the values, the weights are constants.",
    )
    activation: Literal["identity", "gradient"] = Field(
        "identity",
        description="`identity`: all relevance passes an activation (AttnLRP). `gradient`: it is multiplied by the "
        "slope (Ali et al.).",
    )
    gamma: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="How much linear layers of MLPs favour inputs that agree with their output; 0: the epsilon rule.",
    )


@dataclass(frozen=True, slots=True)
class DetachedNorm(LayerNorm):
    """A `LayerNorm` whose standard deviation has no gradient."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        y = (x - mean) * (variance + self.eps).rsqrt().detach() * self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True)
class GammaLinear(Linear):
    """A `Linear` whose gradients follow the gamma rule."""

    gamma: float

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        with torch.no_grad():
            z = F.linear(x, self.weight, self.bias)
        positive = self._favour(0.0, None)
        negative = self._favour(None, 0.0)
        above = x.clamp(min=0)
        below = x.clamp(max=0)
        weighted = torch.where(
            z > 0,
            positive(above) + _apply_weight(negative, below),
            negative(above) + _apply_weight(positive, below),
        )
        return weighted * torch.where(weighted == 0, 0.0, z / weighted).detach()

    def _favour(self, low: float | None, high: float | None) -> Linear:
        """Return the layer with gamma times its weights and biases between `low` and `high` added."""
        bias = self.bias
        return Linear(
            self.weight + self.gamma * self.weight.clamp(low, high),
            None if bias is None else bias + self.gamma * bias.clamp(low, high),
        )


@dataclass(frozen=True, slots=True)
class HalvedGatedUnit(GatedUnit):
    """A `GatedUnit` whose two factors share relevance by halves."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return halve_gradient(self.activation(self.gate(x))) * halve_gradient(self.up(x))


def _apply_weight(linear: Linear, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight)


def halve_gradient(x: Tensor) -> Tensor:
    """Return the same numbers with half of their gradient."""
    half = x * 0.5
    return half + half.detach()


def detach_gate(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the same activation, as its input times a gate that has no gradient."""

    def activation(x: Tensor) -> Tensor:
        with torch.no_grad():
            divisor = torch.where(x.abs() < _NEAR_ZERO, _NEAR_ZERO, x)
            gate = function(divisor) / divisor
        return x * gate

    return activation


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of settings (`RelevanceConfig`), applied to parts of a tower, which have float32 weights."""

    rule: Literal["attnlrp", "conservative"]
    activation: Literal["identity", "gradient"]
    gamma: float

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> Tensor:
        """Attention as `towers.vision.attend` has it: (B, Tq, D) and (B, T, D) twice -> (B, Tq, D)."""
        return self._attention(q, k, v, heads)[0]

    def ask(self, query: Tensor, keys: Tensor, values: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Attend with one query, see `Ask`."""
        output, weights = self._attention(query[:, None], keys, values, heads)
        return output[:, 0], weights[:, :, 0]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Return the outputs (B, Tq, D) and weights (B, H, Tq, T) of an attention."""
        queries, keys, values = (split_heads(x, heads) for x in (q, k, v))
        scale: float = queries.shape[-1] ** -0.5
        if self.rule == "conservative":
            with torch.no_grad():
                weights = (queries @ keys.mT * scale).softmax(dim=-1)
        else:
            weights = halve_gradient((halve_gradient(queries) @ halve_gradient(keys).mT * scale).softmax(dim=-1))
            values = halve_gradient(values)
        return (weights @ values).transpose(-3, -2).flatten(-2), weights

    def _norm(self, norm: LayerNorm) -> LayerNorm:
        return DetachedNorm(norm.weight, norm.bias, norm.eps)

    def _linear(self, linear: Linear) -> Linear:
        return GammaLinear(linear.weight, linear.bias, self.gamma) if self.gamma else linear

    def _function(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return detach_gate(function) if self.activation == "identity" else function

    def _layer(self, layer: Layer) -> Layer:
        """Replace any layer of a head by that of its rule. Layers without a rule are linear."""
        match layer:
            case Chain():
                return self.chain(layer)
            case Residual():
                return Residual(self.chain(layer.inner))
            case LayerNorm():
                return self._norm(layer)
            case Linear():
                return self._linear(layer)
            case Activation():
                return Activation(self._function(layer.function))
            case GatedUnit():
                activation = Activation(self._function(layer.activation.function))
                return HalvedGatedUnit(self._linear(layer.gate), self._linear(layer.up), activation)
        return layer

    def chain(self, chain: Chain) -> Chain:
        """Replace layers one after the other by those of their rules."""
        return Chain(tuple(self._layer(layer) for layer in chain.layers))

    def _block(self, block: Block) -> Block:
        return replace(
            block,
            ln_1=self._norm(block.ln_1),
            ln_2=self._norm(block.ln_2),
            fc=self._linear(block.fc),
            activation=self._function(block.activation),
            proj=self._linear(block.proj),
        )

    def tower(self, tower: VisionTower) -> VisionTower:
        """Return a transformer by its rules, in float32 behind the patches; the attention of its blocks is `attend`."""
        exact = tower.float_head()
        return replace(
            exact,
            ln_pre=None if tower.ln_pre is None else self._norm(tower.ln_pre.float()),
            blocks=tuple(self._block(block.float()) for block in tower.blocks),
            ln_post=self._norm(exact.ln_post),
        )

    def pool(self, pool: AttentionPool) -> AttentionPool:
        """Return a pool by its rules, in float32; its attention is `ask`."""
        exact = pool.float()
        return replace(
            exact,
            norm=None if exact.norm is None else self._layer(exact.norm),
            scale=self.chain(exact.scale),
            out=self._layer_without_gamma(exact.out),
            finish=self.chain(exact.finish),
        )

    def _layer_without_gamma(self, layer: Layer) -> Layer:
        """Replace the projection of an attention: gamma is for the linear layers of MLPs alone."""
        return replace(self, gamma=0.0)._layer(layer)
