"""The class token's way through blocks: the whole block's answer, and gradients that no phrase or scale disturbs.

That the gradients are those of the formula is tested with Grad-ECLIP, in float64.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.explain.class_path import BlockInputs, trace_class_token
from stages.shared.model.towers.vision import VisionTower, attend
from tests.factories import tiny_clip
from tests.stages.explain.models import clip_of

B = 2
P = 3
N = 16
D = 64


@pytest.fixture(
    scope="module", params=[{}, {"ls_init_value": 0.5, "quick_gelu": True}], ids=["plain", "scaled"]
)
def tower(request: pytest.FixtureRequest) -> VisionTower:
    tower = clip_of(tiny_clip(layers=2, **request.param).double()).tower
    assert isinstance(tower, VisionTower)
    return tower


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_class_token_is_one_of_the_tokens(tower: VisionTower, heads: int) -> None:
    block = tower.blocks[0]
    x = numbers(B, 1 + N, D)
    _, k, v = block.project(x)
    path = trace_class_token(
        tower, x[:, 0], [BlockInputs(block=block, heads=heads, keys=k[:, 1:], values=v[:, 1:])], P
    )
    whole = block.finish(x, attend(*block.project(x), heads))
    assert torch.allclose(path.embedding, tower.head(whole[:, 0]), rtol=1e-12, atol=1e-12)
    assert [signed.shape for signed in path.attention_gradients(numbers(B, P, 48))] == [(B, P, N)]


def test_phrases_do_not_see_each_other(tower: VisionTower) -> None:
    keys = [numbers(B, N, D + n)[..., :D] for n in range(len(tower.blocks))]
    blocks = tower.blocks
    inputs = [
        BlockInputs(block=b, heads=4, keys=k, values=numbers(B, N, D))
        for b, k in zip(blocks, keys, strict=True)
    ]
    gradient = numbers(B, P, 48)
    together = trace_class_token(tower, numbers(B, D), inputs, P)
    single = trace_class_token(replace(tower), numbers(B, D), inputs, 1)
    for many, gradient_of_single in zip(
        together.attention_gradients(gradient), single.attention_gradients(gradient[:, 1:2]), strict=True
    ):
        assert many.shape == (B, P, N)
        assert torch.allclose(many[:, 1:2], gradient_of_single, rtol=1e-12, atol=1e-13)
    assert torch.equal(
        together.attention_gradients(gradient)[0], together.attention_gradients(gradient)[0]
    ), "a second time, too"
