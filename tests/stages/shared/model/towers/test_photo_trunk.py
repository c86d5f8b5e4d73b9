"""The photograph model's trunk: what timm and open_clip make of it, and tokens that speak for what they belong to."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.photographs import FOLDER
from stages.explain import EXPLAINERS
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import load
from stages.shared.model.towers.photo_trunk import ALIKE, GRID, STRIDE_PX, TRUNK_NAME, WIDTH, Neck, alike


def test_open_clip_builds_it_by_name() -> None:
    model = open_clip.CLIP(
        embed_dim=WIDTH,
        vision_cfg={
            "timm_model_name": TRUNK_NAME,
            "timm_model_pretrained": False,
            "timm_pool": "abs_attn",
            "timm_proj": "",
            "image_size": GRID * STRIDE_PX,
        },
        text_cfg={"context_length": 8, "vocab_size": 10, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    with torch.no_grad():
        assert model.encode_image(torch.randn(1, 3, 224, 224)).shape == (1, WIDTH)
    assert model.visual.head.pool.feat_size == (GRID, GRID)


def test_its_grid_follows_the_image() -> None:
    trunk = timm.create_model(TRUNK_NAME).eval()
    with torch.no_grad():
        assert trunk(torch.randn(1, 3, 96, 160)).shape == (1, WIDTH, 6, 10)


def test_timm_has_no_weights_of_it() -> None:
    with pytest.raises(ValueError, match="has no weights in timm"):
        timm.create_model(TRUNK_NAME, pretrained=True)


def test_tokens_count_for_those_that_look_like_them() -> None:
    torch.manual_seed(0)
    things = torch.randn(2, 40)
    x = torch.stack([things[0], things[1], things[0] + 0.01 * torch.randn(40), things[1]])[None]
    weights = alike(x)[0]
    assert torch.allclose(weights.sum(dim=-1), torch.ones(4))
    assert torch.all((weights > 0) == torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]).bool())
    unit = F.normalize(x - x.mean(dim=1, keepdim=True), dim=-1)[0]
    expected = (unit[0] @ unit.T - ALIKE).clamp(min=0)
    assert torch.allclose(weights[0], expected / expected.sum())


def test_the_neck_averages_over_tokens_that_look_alike() -> None:
    torch.manual_seed(0)
    neck = Neck(12, 8).eval()
    a, b = torch.randn(2, 12)
    with torch.no_grad():
        alone = neck(torch.stack([a, a + 1e-3, b])[None])[0]
    assert torch.allclose(alone[0], alone[1], atol=1e-3)
    assert not torch.allclose(alone[0], alone[2], atol=1e-2)


def test_channels_are_dropped_for_all_tokens_of_an_image_at_once() -> None:
    torch.manual_seed(0)
    neck = Neck(12, 8).train()
    x = torch.randn(1, 1, 12).expand(3, 5, 12)
    y = neck.reduce(x)
    assert torch.allclose(y, y[:1, :1].expand_as(y))
    neck.mlp.eval()
    tokens = neck(x + 0.0)
    assert torch.allclose(tokens, tokens[:, :1].expand_as(tokens), atol=1e-5)  # alike within an image
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)  # and not between images


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.002)])
def test_the_photograph_model_computes_the_same_in_16_bits(precision: str, tolerance: float) -> None:
    pictures = [Image.open(path).convert("RGB").resize((224, 224)) for path in sorted(FOLDER.glob("*.jpg"))[:1]]
    rgb = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    found = []
    for wanted in ("fp32", precision):
        model = load(ModelConfig.model_validate({"name": "photo", "device": "cpu", "precision": wanted}))
        explainer = EXPLAINERS["grad_eclip"](EXPLAINERS.config(), model)
        maps = explainer.started(list(rgb.numpy()), [["dog", "sky"]]).wait()
        heat = [each.values / each.values.max() for own in maps for each in own]
        found.append((F.normalize(model.tower.encode(rgb).float(), dim=-1), torch.from_numpy(np.stack(heat))))
    (full, full_heat), (half, half_heat) = found
    assert (1 - (full * half).sum(dim=-1)).max() < tolerance
    assert (full_heat - half_heat).abs().mean() < tolerance
