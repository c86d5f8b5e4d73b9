"""The hand-written gradients of the class path against torch's autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.explain import grad_eclip
from stages.shared.model.towers.layers import LayerNorm, Linear
from stages.shared.model.towers.vision import Block, VisionTower, split_heads

B, P, N, D, E = 2, 3, 7, 12, 5

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Parts:
    """Random float64 weights of anything."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def norm(self, *, bias: bool = True) -> LayerNorm:
        return LayerNorm(1 + 0.3 * self.tensor(D), self.tensor(D) if bias else None, 1e-5)

    def linear(self, inputs: int, outputs: int) -> Linear:
        return Linear(self.tensor(outputs, inputs) * inputs**-0.5, self.tensor(outputs))

    def block(self, heads: int, activation: str, *, scaled: bool) -> Block:
        return Block(
            heads=heads,
            ln_1=self.norm(),
            qkv=self.linear(D, 3 * D),
            out=self.linear(D, D),
            ls_1=self.tensor(D) if scaled else None,
            ln_2=self.norm(bias=scaled),
            fc=self.linear(D, 4 * D),
            activation=ACTIVATIONS[activation],
            proj=self.linear(4 * D, D),
            ls_2=self.tensor(D) if scaled else None,
        )

    def tower(self, blocks: tuple[Block, ...], *, output: bool) -> VisionTower:
        return VisionTower(
            patch_weight=self.tensor(D, 3, 2, 2),
            patch_bias=None,
            class_token=self.tensor(D),
            position_embedding=self.tensor(1 + N, D),
            grid_hw=(1, N),
            ln_pre=None,
            blocks=blocks,
            ln_post=self.norm(),
            output=self.tensor(D, E) if output else None,
            mean=torch.zeros(3),
            std=torch.ones(3),
        )


def reference(block: Block, token: Tensor, keys: Tensor, values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Class token (B, D) through a block with the patches held, and its attention weights (B, H, 1, 1 + N)."""
    q, k, v = block.project(token)
    all_keys, all_values = torch.cat([k[:, None], keys], dim=1), torch.cat([v[:, None], values], dim=1)
    query, all_keys, all_values = (split_heads(t, heads) for t in (q[:, None], all_keys, all_values))
    attention = (query @ all_keys.mT * (D // heads) ** -0.5).softmax(dim=-1)
    o = (attention @ all_values).transpose(1, 2).flatten(1)
    return block.finish(token, o), attention


CASES = [
    {"heads": heads, "activation": activation, "scaled": scaled}
    for heads, activation, scaled in [
        *((4, name, True) for name in ACTIVATIONS),
        (1, "gelu", True),
        (1, "gelu", False),
        (3, "quick gelu", False),
    ]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("output", [True, False], ids=["projected", "unprojected"])
def test_gradients_equal_autograd(case: dict[str, Any], depth: int, output: bool) -> None:
    parts, heads = Parts(seed=7), case["heads"]
    blocks = tuple(parts.block(**case) for _ in range(depth))
    tower = parts.tower(blocks, output=output)
    held = [(parts.tensor(B, N, D), parts.tensor(B, N, D)) for _ in blocks]
    start = parts.tensor(B, D)
    gradient = parts.tensor(B, P, E if output else D)

    token, steps = start, []
    for block, (keys, values) in zip(blocks, held, strict=True):
        token, step = grad_eclip.class_forward(block, token, keys, values, heads)
        steps.append(step)
    found = grad_eclip.attention_gradients(tower, token, steps, gradient)

    wanted_token, attentions = start.clone().requires_grad_(), []
    for block, (keys, values) in zip(blocks, held, strict=True):
        wanted_token, attention = reference(block, wanted_token, keys, values, heads)
        attentions.append(attention)
    assert torch.allclose(token, wanted_token, rtol=1e-12, atol=1e-12)
    embedding = tower.head(wanted_token)
    for p in range(P):
        wanted = torch.autograd.grad(embedding, attentions, gradient[:, p], retain_graph=True)
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.shape == (B, P, N)
            assert torch.allclose(mine[:, p], theirs[:, :, 0, 1:].sum(dim=1), rtol=1e-9, atol=1e-11)


def test_the_class_token_is_one_of_the_tokens() -> None:
    """The step by step way of the class token is what the whole block computes for it."""
    parts = Parts(seed=1)
    block = parts.block(4, "gelu", scaled=True)
    x = parts.tensor(B, 1 + N, D)
    _, k, v = block.project(x)
    token, step = grad_eclip.class_forward(block, x[:, 0], k[:, 1:], v[:, 1:], block.heads)
    assert torch.allclose(token, block(x)[:, 0], rtol=1e-12, atol=1e-12)
    assert step.attention.shape == (B, 4, 1 + N)
    assert torch.allclose(step.attention.sum(dim=-1), torch.ones(B, 4, dtype=torch.float64))


def test_a_norm_without_bias() -> None:
    parts = Parts(seed=2)
    norm = parts.norm(bias=False)
    x = parts.tensor(B, D).requires_grad_()
    gradient = parts.tensor(B, P, D)
    found = norm.back(x.detach(), gradient)
    for p in range(P):
        (wanted,) = torch.autograd.grad(norm(x), x, gradient[:, p], retain_graph=True)
        assert torch.allclose(found[:, p], wanted, rtol=1e-9, atol=1e-12)


def test_phrases_do_not_see_each_other() -> None:
    parts = Parts(seed=3)
    block = parts.block(4, "gelu", scaled=False)
    tower = parts.tower((block,), output=True)
    token, step = grad_eclip.class_forward(block, parts.tensor(B, D), parts.tensor(B, N, D), parts.tensor(B, N, D), 4)
    gradient = parts.tensor(B, P, E)
    [together] = grad_eclip.attention_gradients(tower, token, [step], gradient)
    [alone] = grad_eclip.attention_gradients(replace(tower), token, [step], gradient[:, 1:2])
    assert torch.allclose(together[:, 1:2], alone, rtol=1e-12, atol=1e-13)
