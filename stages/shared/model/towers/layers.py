"""Layers with fixed weights, which can also be gone through backwards for many phrases at once.

A layer's `back` takes what went into the layer, (B, D), and the gradient at what came out, (B, P, D'), and gives the
gradient at what went in, (B, P, D). The B vectors are one token of each image, the P gradients those of its phrases:
written out by hand they are plain matrix products. The tests compare with autograd in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

PartT = TypeVar("PartT")


def in_float(part: PartT) -> PartT:
    """Any part of a tower with float32 weights.

    It computes in float32, but weights that were rounded to 16 bits stay as rounded as they are.
    """
    found: Any = part
    if isinstance(part, Tensor):
        found = part.float()
    elif isinstance(part, tuple):
        found = tuple(in_float(each) for each in part)
    elif is_dataclass(part) and not isinstance(part, type):
        found = replace(part, **{each.name: in_float(getattr(part, each.name)) for each in fields(part)})
    return cast("PartT", found)


class Part:
    """A part of a tower: a dataclass of weights, of other parts, and of numbers and functions."""

    __slots__ = ()

    def float(self) -> Self:
        """The same with float32 weights, see `in_float`."""
        return in_float(self)


class Layer(Part, ABC):
    """A function of one token, which is applied to the last dimension."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""

    @abstractmethod
    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient (B, P, D) at the input x (B, D), given it at the output."""


@dataclass(frozen=True, slots=True)
class LayerNorm(Layer):
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


@dataclass(frozen=True, slots=True)
class Linear(Layer):
    """y = x Wᵀ + b with fixed weights; `weight` is (out, in)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return F.linear(x, self.weight, self.bias)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient @ self.weight


def linear(module: Any, precision: torch.dtype | None) -> Linear:
    """The weights of a module; None keeps its own precision."""
    bias = None if module.bias is None else module.bias.to(precision)
    return Linear(module.weight.to(precision), bias)


@dataclass(frozen=True, slots=True)
class Activation(Layer):
    """A function of each number alone, such as GELU."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return self.function(x)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`; the derivative comes from autograd, whatever the function is."""
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(given).sum(), given)
        return gradient * slope[:, None]


@dataclass(frozen=True, slots=True)
class Chain(Layer):
    """Layers one after the other."""

    layers: tuple[Layer, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return self._inputs(x)[-1]

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        for layer, given in zip(reversed(self.layers), reversed(self._inputs(x)[:-1]), strict=True):
            gradient = layer.back(given, gradient)
        return gradient

    def _inputs(self, x: Tensor) -> Sequence[Tensor]:
        """Return the input of each layer, and the output of the last."""
        inputs = [x]
        for layer in self.layers:
            inputs.append(layer(inputs[-1]))
        return inputs


NOTHING: Final = Chain(())
"""No layer at all."""


@dataclass(frozen=True, slots=True)
class Residual(Layer):
    """x + inner(x)."""

    inner: Chain

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return x + self.inner(x)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient + self.inner.back(x, gradient)


@dataclass(frozen=True, slots=True)
class Gated(Layer):
    """activation(gate(x)) · up(x), number by number, as in SwiGLU."""

    gate: Linear
    up: Linear
    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return self.activation(self.gate(x)) * self.up(x)

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        gate, up = self.gate(x), self.up(x)
        at_gate = self.activation.back(gate, gradient * up[:, None])
        return at_gate @ self.gate.weight + (gradient * self.activation(gate)[:, None]) @ self.up.weight


@dataclass(frozen=True, slots=True)
class Scale(Layer):
    """x · s with a fixed factor for each number, as in LayerScale."""

    factors: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return x * self.factors

    def back(self, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient * self.factors
