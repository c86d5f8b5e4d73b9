"""Layers with fixed weights, which can also be gone through backwards for many phrases at once.

A layer's `back` takes what went into the layer, (B, D), and the gradient at what came out, (B, P, D'), and gives the
gradient at what went in, (B, P, D). The B vectors are one token of each image, the P gradients those of its phrases:
written out by hand they are plain matrix products. The tests compare with autograd in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Layer(Protocol):
    """A function of one token."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient (B, P, D) at the input x (B, D), given it at the output."""

    def float(self) -> Layer:
        """The same with float32 weights."""


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer normalisation with fixed weights.

    The weights may be float32 where the tokens have 16 bits, as in open_clip's half-precision models.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dimension in the weights' precision; the result has the precision of x."""
        y = F.layer_norm(x.to(self.weight.dtype), (x.shape[-1],), self.weight, self.bias, self.eps)
        return y.to(x.dtype)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        inverse = (variance + self.eps).rsqrt()
        unit = ((x - mean) * inverse)[:, None]
        g = gradient * self.weight
        return inverse[:, None] * (g - g.mean(dim=-1, keepdim=True) - unit * (g * unit).mean(dim=-1, keepdim=True))

    def float(self) -> LayerNorm:
        """The same with float32 weights, see `Block.float`."""
        return LayerNorm(self.weight.float(), None if self.bias is None else self.bias.float(), self.eps)


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x Wᵀ + b with fixed weights; `weight` is (out, in)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return F.linear(x, self.weight, self.bias)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient @ self.weight

    def float(self) -> Linear:
        """The same with float32 weights, see `Block.float`."""
        return replace(self, weight=self.weight.float(), bias=None if self.bias is None else self.bias.float())


def linear(module: Any, precision: torch.dtype | None) -> Linear:
    """The weights of a module; None keeps its own precision."""
    bias = None if module.bias is None else module.bias.to(precision)
    return Linear(module.weight.to(precision), bias)


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of each number alone, such as GELU."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to every number."""
        return self.function(x)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`; the derivative comes from autograd, whatever the function is."""
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(given).sum(), given)
        return gradient * slope[:, None]

    def float(self) -> Activation:
        """Itself: it has no weights."""
        return self


@dataclass(frozen=True, slots=True)
class Chain:
    """Layers one after the other."""

    layers: tuple[Layer, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return self._inputs(x)[-1]

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        for layer, given in zip(reversed(self.layers), reversed(self._inputs(x)[:-1]), strict=True):
            gradient = layer.back(given, gradient)
        return gradient

    def float(self) -> Chain:
        """The same with float32 weights."""
        return Chain(tuple(layer.float() for layer in self.layers))

    def _inputs(self, x: Tensor) -> Sequence[Tensor]:
        """What goes into each layer, and what comes out of the last."""
        inputs = [x]
        for layer in self.layers:
            inputs.append(layer(inputs[-1]))
        return inputs


NOTHING: Final = Chain(())
"""No layer at all."""


@dataclass(frozen=True, slots=True)
class Residual:
    """x + inner(x)."""

    inner: Chain

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return x + self.inner(x)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient + self.inner.back(x, gradient)

    def float(self) -> Residual:
        """The same with float32 weights."""
        return Residual(self.inner.float())


@dataclass(frozen=True, slots=True)
class Gated:
    """activation(gate(x)) · up(x), number by number, as in SwiGLU."""

    gate: Linear
    up: Linear
    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return self.activation(self.gate(x)) * self.up(x)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        gate, up = self.gate(x), self.up(x)
        at_gate = self.activation.back(gate, gradient * up[:, None])
        return at_gate @ self.gate.weight + (gradient * self.activation(gate)[:, None]) @ self.up.weight

    def float(self) -> Gated:
        """The same with float32 weights."""
        return Gated(self.gate.float(), self.up.float(), self.activation)


@dataclass(frozen=True, slots=True)
class Scale:
    """x · s with a fixed factor for each number, as in LayerScale."""

    factors: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        return x * self.factors

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient * self.factors

    def float(self) -> Scale:
        """The same with float32 factors."""
        return Scale(self.factors.float())
