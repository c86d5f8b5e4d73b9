"""Relevance of attention against the rules as autograd has them in float64, and that nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.explainers.transformer_interpretability import (
    linear_rule,
    propagate_product,
    propagate_sum,
)
from phrasebox.stages.model.towers.layers import Linear
from phrasebox.stages.model.towers.vision import Block, split_heads
from tests.closeness import assert_close
from tests.factories import tiny_clip
from tests.stages.explain import models
from tests.stages.explainers.explicit import in_float64

RGB = models.image(rows=3, columns=3, seed=3)


def make_explainer() -> Any:
    model = tiny_clip(layers=3, width=16, head_width=8, ls_init_value=0.5)
    return models.make_explainer("transformer_interpretability", model)


def spread(function: Callable[..., Tensor], inputs: list[Tensor], relevance: Tensor) -> list[Tensor]:
    """z = f(x): R_x = x · (dz/dx)' (R / z), the z rule of any function, by autograd; z + 1e-9 as the authors divide."""
    given = [x.detach().requires_grad_() for x in inputs]
    z = function(*given)
    gradients = torch.autograd.grad(z, given, torch.where(z == 0, 0.0, relevance / (z + 1e-9)).detach())
    return [x.detach() * gradient for x, gradient in zip(given, gradients, strict=True)]


def linear(layer: Linear, x: Tensor, relevance: Tensor) -> Tensor:
    """Positive weights see positive inputs, negative ones negative inputs."""
    w = layer.weight
    above, below = spread(
        lambda p, n: p @ w.clamp(min=0).T + n @ w.clamp(max=0).T, [x.relu(), -(-x).relu()], relevance
    )
    return above + below


def summed(a: Tensor, b: Tensor, relevance: Tensor) -> list[Tensor]:
    parts = spread(lambda x, y: x + y, [a, b], relevance)
    sizes = [abs(float(part.sum())) for part in parts]
    return [
        part * float(relevance.sum()) * size / sum(sizes) / float(part.sum())
        for part, size in zip(parts, sizes, strict=True)
    ]


def reference_block(block: Block, x: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance behind a block -> before it, and of its attention."""
    z = block.ln_1(x)
    q, k, v = (split_heads(part, block.heads) for part in block.qkv(z).chunk(3, dim=-1))
    a = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    o = (a @ v).transpose(1, 2).flatten(2)
    added = block.out(o) * (1.0 if block.ls_1 is None else block.ls_1)
    y = x + added
    normed = block.ln_2(y)
    active = block.activation(block.fc(normed))
    more = block.proj(active) * (1.0 if block.ls_2 is None else block.ls_2)
    at_y, at_more = summed(y, more, relevance)
    at_y = at_y + linear(block.fc, normed, linear(block.proj, active, at_more))
    at_x, at_added = summed(x, added, at_y)
    at_o = split_heads(linear(block.out, o, at_added), block.heads)
    at_a, at_v = (part / 2 for part in spread(torch.matmul, [a, v], at_o))
    at_q, at_k = (part / 2 for part in spread(lambda m, n: m @ n.mT, [q, k], at_a))
    joined = torch.cat([part.transpose(1, 2).flatten(2) for part in (at_q, at_k, at_v)], dim=-1)
    return at_x + linear(block.qkv, z, joined), at_a


@pytest.mark.usefixtures("float64")
def test_maps_are_the_papers_with_rules_by_autograd_in_float64() -> None:
    explainer = make_explainer()
    text = explainer.texts(["dog"])[0]
    tower = in_float64(explainer.walk.tower)
    with torch.no_grad():
        x = explainer.walk.tower.embed(torch.from_numpy(RGB)).double()
    inputs = []
    attention = []
    y = x.requires_grad_()
    for block in tower.blocks:
        q, k, v = (split_heads(part, block.heads) for part in block.project(y))
        attention.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1))
        inputs.append(y.detach())
        y = block.finish(y, (attention[-1] @ v).transpose(1, 2).flatten(2))
    e = tower.head(y[:, 0])
    cosine = F.cosine_similarity(e, text.double()[None]).sum()
    score = cosine / 0.07  # the scale of a model of open_clip before its training
    gradients = torch.autograd.grad(score, attention)
    contributions = (e.detach() * text.double()).relu()
    assert tower.output is not None
    relevance = torch.zeros_like(y)
    relevance[:, 0] = linear(
        Linear(tower.output.T, None), tower.ln_post(y[:, 0]).detach(), contributions / contributions.sum()
    ).detach()
    joint = torch.eye(10, dtype=torch.float64)
    steps = list(zip(tower.blocks, inputs, gradients, strict=True))
    for block, block_input, gradient in reversed(steps):
        relevance, at_attention = reference_block(block, block_input, relevance)
        c = torch.eye(10, dtype=torch.float64) + (gradient * at_attention).relu().mean(dim=1)[0]
        joint = joint @ (c / c.sum(dim=-1, keepdim=True))
    expected = joint[0, 1:].detach()
    heat = explainer.maps(torch.from_numpy(RGB)).heat(text[None, None])
    assert expected.max() > 1e-4
    assert_close(heat[0, 0], expected)


def test_rules_in_numbers() -> None:
    """Output 3 = 2·1 + (-1)(-1) with -4 = 2·(-2) left out: 2 and 1 share it."""
    layer = linear_rule(Linear(torch.tensor([[1.0, -1.0, -2.0]]), None), torch.tensor([[[2.0, -1.0, 2.0]]]))
    assert layer(torch.tensor([[[0.6]]])).flatten().tolist() == pytest.approx([0.4, 0.2, 0])
    a, b = propagate_product(
        torch.tensor([[0.25, 0.75]]), torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0]])
    )
    assert a.flatten().tolist() == pytest.approx([0.125, 0.375])
    assert b.flatten().tolist() == pytest.approx([0.125, 0.375])
    # 3 = 4 - 1: the shares 4/3 and -1/3 are scaled to 4/5 and 1/5 of the relevance.
    a, b = propagate_sum(torch.tensor([4.0]), torch.tensor([-1.0]), torch.tensor([1.0]))
    assert (a.item(), b.item()) == (pytest.approx(0.8), pytest.approx(0.2))
