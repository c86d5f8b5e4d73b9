from __future__ import annotations

import functools
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.vision import VisionTower, attend
from tests import factories
from tests.factories import SPEC

tokenizer = open_clip.get_tokenizer("ViT-B-32")
tiny_clip = functools.cache(factories.tiny_clip)  # only read

TOWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.5},
    "quick gelu": {"quick_gelu": True},
    "no ln_pre": {"no_ln_pre": True},
    "custom block": {"block_type": "custom", "ls_init_value": 0.5},
    "one layer": {"layers": 1},
}


def pixels(height: int = 32, width: int = 32, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def normalised(rgb: Tensor) -> Tensor:
    mean, std = torch.tensor(SPEC.mean)[:, None, None], torch.tensor(SPEC.std)[:, None, None]
    return (rgb.permute(0, 3, 1, 2).float() / 255 - mean) / std


def tower_of(model: nn.Module) -> VisionTower:
    tower = from_open_clip(model, tokenizer, SPEC).tower
    assert isinstance(tower, VisionTower)
    return tower


@pytest.mark.parametrize("options", TOWERS.values(), ids=TOWERS)
def test_encode_equals_encode_image(options: dict[str, Any]) -> None:
    model = tiny_clip(**options)
    with torch.no_grad():
        wanted = model.encode_image(normalised(pixels()))
    assert torch.allclose(tower_of(model).encode(pixels()), wanted, atol=1e-5)


def test_a_block_in_sixteen_bits_becomes_float32() -> None:
    tower = from_open_clip(tiny_clip(), tokenizer, SPEC, precision=torch.bfloat16).tower
    assert isinstance(tower, VisionTower)
    block = tower.blocks[0].float()
    assert {block.qkv.weight.dtype, block.ln_1.weight.dtype, block.proj.bias.dtype} == {torch.float32}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 56), (64, 64), (8, 8)])
def test_positions_are_resized_as_the_authors_do(height: int, width: int) -> None:
    model = tiny_clip()
    table = model.visual.positional_embedding.detach()
    grid = table[1:].T.reshape(1, 64, 4, 4)
    grid = F.interpolate(grid, size=(height // 8, width // 8), mode="bicubic", align_corners=False)
    wanted = torch.cat([table[:1], grid.flatten(2)[0].T])
    assert torch.allclose(tower_of(model).positions((height // 8, width // 8)), wanted, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(16, 56), (64, 64)])
def test_other_sizes_equal_a_model_of_that_size(height: int, width: int) -> None:
    """open_clip's own model for that input, with the resized positions, is the reference."""
    model = tiny_clip()
    tower = tower_of(model)
    other = factories.tiny_clip(image_size=[height, width])
    state = model.state_dict()
    state["visual.positional_embedding"] = tower.positions((height // 8, width // 8))
    other.load_state_dict(state)
    with torch.no_grad():
        wanted = other.encode_image(normalised(pixels(height, width)))
    assert torch.allclose(tower.encode(pixels(height, width)), wanted, atol=1e-5)


def test_sides_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of the 8 px patch, got 36x32"):
        tower_of(tiny_clip()).embed(pixels(32, 36))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_against_the_formula(heads: int) -> None:
    q, k, v = torch.randn(3, 2, 5, 64, generator=torch.Generator().manual_seed(0)).double()
    parts = []
    for h in range(heads):
        part = slice(h * 64 // heads, (h + 1) * 64 // heads)
        weights = (q[..., part] @ k[..., part].mT * (64 / heads) ** -0.5).softmax(dim=-1)
        parts.append(weights @ v[..., part])
    assert torch.allclose(attend(q, k, v, heads), torch.cat(parts, dim=-1), atol=1e-12)
