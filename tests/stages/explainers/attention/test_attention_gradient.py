"""Attention times its gradient, against autograd through open_clip in float64, and against Grad-ECLIP."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.explainers.attention.attention_gradient import AttentionGradient, AttentionGradientConfig
from stages.explainers.attention.game import Game, GameConfig
from stages.shared.model.load import from_open_clip
from tests.factories import TOWERS
from tests.stages.explainers.attention.captured import capture

PHRASES = ["red car", "dog"]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


def pixels(name: str) -> np.ndarray:
    side = TOWERS[name][1].size_px
    return np.random.default_rng(2).integers(0, 256, (1, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("weight", ["attention", "none"])
@pytest.mark.parametrize("rectify", ["head", "sum"])
@pytest.mark.parametrize("name", ["class token", "timm, class token", "ResNet", "SigLIP"])
def test_the_formula(name: str, weight: str, rectify: str) -> None:
    make, spec = TOWERS[name]
    model = make()
    config = AttentionGradientConfig(weight=weight, rectify=rectify)  # type: ignore[arg-type]
    explainer = AttentionGradient(config, from_open_clip(model, tokenizer, spec))
    rgb = pixels(name)
    captured = capture(model, explainer.model.tower.normalised(torch.from_numpy(rgb))[0])
    cells = (spec.size_px // spec.patch_px) ** 2
    attention = captured.attention[-1]
    for text, found in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        (gradient,) = captured.gradients(explainer.texts([text])[0], [attention])
        g, a = gradient[0, :, 0, -cells:].numpy(), attention[0, :, 0, -cells:].detach().numpy()
        each = g * a if weight == "attention" else g
        wanted = np.maximum(each, 0).mean(axis=0) if rectify == "head" else np.maximum(each.mean(axis=0), 0)
        assert np.allclose(found.values.ravel(), wanted, atol=3e-3 * wanted.max())


@pytest.mark.parametrize("name", ["class token", "ResNet", "SigLIP"])
def test_without_a_weight_and_summed_it_is_grad_eclip_over_the_number_of_heads(name: str) -> None:
    make, spec = TOWERS[name]
    clip = from_open_clip(make(), tokenizer, spec)
    heads = clip.tower.blocks[-1].heads if name == "class token" else clip.tower.pool.heads  # type: ignore[attr-defined]
    ours = AttentionGradient(AttentionGradientConfig(weight="none", rectify="sum"), clip)
    theirs = GradEclip(GradEclipConfig(blocks=1, spatial_weight=False, contrast=0.0), clip)
    rgb = pixels(name)
    for found, wanted in zip(ours.explain(rgb, [PHRASES])[0], theirs.explain(rgb, [PHRASES])[0], strict=True):
        assert wanted.values.any()
        assert np.allclose(heads * found.values, wanted.values, atol=1e-5 * wanted.values.max())


def test_on_blocks_it_is_game_on_the_last_one() -> None:
    make, spec = TOWERS["class token"]
    clip = from_open_clip(make(), tokenizer, spec)
    ours = AttentionGradient(AttentionGradientConfig(), clip).explain(pixels("class token"), [PHRASES])[0]
    theirs = Game(GameConfig(blocks=1, scale=7.0), clip).explain(pixels("class token"), [PHRASES])[0]
    for found, wanted in zip(ours, theirs, strict=True):
        assert np.allclose(7 * found.values, wanted.values, atol=1e-6 * wanted.values.max())
