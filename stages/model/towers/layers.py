"""Layers with fixed weights: functions of one token, which are applied to the last dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

PartT = TypeVar("PartT")


TensorFunction = Callable[[Tensor], Tensor]


def to_float(part: PartT) -> PartT:
    """Return any part of a tower with float32 weights; weights of 16 bits stay rounded."""
    converted: Any = part
    if isinstance(part, Tensor):
        converted = part.float()
    elif isinstance(part, tuple):
        converted = tuple(map(to_float, part))
    elif is_dataclass(part) and not isinstance(part, type):
        converted = replace(
            part, **{field.name: to_float(getattr(part, field.name)) for field in fields(part)}
        )
    return cast("PartT", converted)


def gradient_at(function: TensorFunction, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradients (B, P, D) at a vector of each image, x (B, D), given those at `function(x)`, (B, P, E).

    The function gets a copy of the vector for each of the P phrases, (B, P, D), which keeps
    their gradients apart.
    """
    with torch.enable_grad():
        copies = x.detach()[:, None].expand(-1, gradient.shape[1], -1).requires_grad_()
        (gradients,) = torch.autograd.grad(function(copies), copies, gradient)
    return gradients


class Part:
    """A part of a tower: a dataclass of weights, of other parts, and of numbers and functions."""

    __slots__ = ()

    def float(self) -> Self:
        """Return the same with float32 weights, see `to_float`."""
        return to_float(self)


class Layer(Part, ABC):
    """A function of one token."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""


@dataclass(frozen=True, slots=True)
class LayerNorm(Layer):
    """Layer normalisation in the weights' precision, which may be float32 where the tokens have 16 bits."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        y = F.layer_norm(x.to(self.weight.dtype), (x.shape[-1],), self.weight, self.bias, self.eps)
        return y.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Linear(Layer):
    """y = x Wᵀ + b, computed in the weights' precision; `weight` is (out, in)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Activation(Layer):
    """A function of single numbers, such as GELU."""

    function: TensorFunction

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return self.function(x)


@dataclass(frozen=True, slots=True)
class Chain(Layer):
    """Layers one after the other."""

    layers: tuple[Layer, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        for layer in self.layers:
            x = layer(x)
        return x


NOTHING: Final = Chain(())  # No layer at all


@dataclass(frozen=True, slots=True)
class Residual(Layer):
    """x + inner(x)."""

    inner: Chain

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return x + self.inner(x)


@dataclass(frozen=True, slots=True)
class GatedUnit(Layer):
    """activation(gate(x)) · up(x), number by number, as in SwiGLU."""

    gate: Linear
    up: Linear
    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return self.activation(self.gate(x)) * self.up(x)


@dataclass(frozen=True, slots=True)
class Scale(Layer):
    """x · s with a fixed factor for each number, as in LayerScale."""

    factors: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """See `Layer`."""
        return x * self.factors
