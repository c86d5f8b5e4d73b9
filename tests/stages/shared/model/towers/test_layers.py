"""Every layer backwards, for many phrases at once, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.towers.layers import Activation, Chain, Gated, Layer, LayerNorm, Linear, Residual, Scale

B, P, D = 3, 4, 6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int) -> Linear:
    return Linear(numbers(outputs, inputs, seed=inputs), numbers(outputs, seed=outputs))


LAYERS: dict[str, Layer] = {
    "linear": linear(D, 5),
    "norm": LayerNorm(numbers(D, seed=1), numbers(D, seed=2), 1e-5),
    "norm without bias": LayerNorm(numbers(D, seed=1), None, 1e-5),
    "activation": Activation(F.gelu),
    "scale": Scale(numbers(D, seed=3)),
    "gated": Gated(linear(D, 7), Linear(numbers(7, D, seed=9), None), Activation(F.silu)),
    "chain": Chain((linear(D, 5), Activation(F.silu), linear(5, 4))),
    "nothing": Chain(()),
    "residual": Residual(Chain((LayerNorm(numbers(D), None, 1e-5), linear(D, 8), Activation(F.gelu), linear(8, D)))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_back_equals_autograd(name: str) -> None:
    layer, x = LAYERS[name], numbers(B, D, seed=5).requires_grad_()
    y = layer(x)
    gradient = numbers(B, P, y.shape[-1], seed=6)
    found = layer.back(x.detach(), gradient)
    assert found.shape == (B, P, D)
    for p in range(P):
        (wanted,) = torch.autograd.grad((y * gradient[:, p]).sum(), x, retain_graph=True)
        assert torch.allclose(found[:, p], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_float_has_float32_weights(name: str) -> None:
    x = numbers(B, D, seed=5)
    assert torch.allclose(LAYERS[name].float()(x.float()).double(), LAYERS[name](x), rtol=1e-4, atol=1e-4)
