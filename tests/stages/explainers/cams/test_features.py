"""Grad-CAM, Grad-CAM++ and LayerCAM: the papers' sums in loops over float64 features of open_clip's own modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from stages.contract.errors import ConfigError
from stages.explain import EXPLAINERS
from stages.explainers.cams.cam import Cam, CamConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, TOWERS, tiny_clip
from tests.stages.explainers.attention.captured import capture

PHRASES = ["red car", "dog"]
KINDS = ["grad_cam", "grad_cam_plus_plus", "layer_cam"]
tokenizer = open_clip.get_tokenizer("ViT-B-32")
Floats = NDArray[np.float64]

PLACES = {
    ("class token", 1): "transformer.resblocks.3.ln_1",
    ("class token", 3): "transformer.resblocks.1.ln_1",
    ("timm, class token", 1): "trunk.blocks.4",
    ("ResNet", 1): "layer4",
    ("EVA02", 1): "trunk.blocks.10",
    ("SigLIP", 1): "trunk.norm",
    ("ConvNeXt", 1): "trunk.norm_pre",
}
"""Tower and layer -> the module whose output has the features, with or without tokens that are no patches."""


def explainer_of(kind: str, clip: ClipModel, **settings: Any) -> Any:
    explainer = EXPLAINERS[kind]
    return explainer(explainer.config_type(**settings), clip)


def by_hand(kind: str, x: Floats, g: Floats) -> Floats:
    """Features and gradients (N, D) -> a map, as the papers write it."""
    n, d = x.shape
    heat = np.zeros(n)
    if kind == "layer_cam":
        for i in range(n):
            heat[i] = max(sum(max(g[i, k], 0) * x[i, k] for k in range(d)), 0)
        return heat
    weights = np.zeros(d)
    for k in range(d):
        if kind == "grad_cam":
            weights[k] = sum(g[:, k]) / n
            continue
        total = max(sum(x[:, k]), 0)
        for slope in 100 * g[:, k]:
            if slope > 0:
                weights[k] += slope**2 / (2 * slope**2 + total * slope**3) * slope
    for i in range(n):
        heat[i] = max(sum(weights * x[i]), 0)
    return heat


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_the_formulas(name: str, layer: int) -> None:
    make, spec = TOWERS[name]
    model, side = make(seed=1), spec.size_px
    clip = from_open_clip(model, tokenizer, spec)
    rgb = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    captured = capture(model, clip.tower.normalised(torch.from_numpy(rgb))[0], PLACES[name, layer])
    (features,) = captured.seen
    cells = (side // spec.patch_px) ** 2
    for kind in KINDS:
        explainer = explainer_of(kind, clip, layer=layer)
        texts = explainer.texts(PHRASES)
        texts = torch.cat([texts, -texts, torch.zeros(4, clip.embed_dim)])  # a map of zeros is one of two
        heat = []
        for text, found in zip(texts[:4], explainer.maps(torch.from_numpy(rgb), texts[None]).values[0], strict=False):
            (gradient,) = captured.gradients(text, [features])
            x, g = (
                (part[0].flatten(1).T if part.dim() == 4 else part[0, -cells:]).detach().numpy()
                for part in (features, gradient)
            )
            heat.append(by_hand(kind, x, g))
            assert np.allclose(found.numpy(), heat[-1], atol=2e-3 * heat[-1].max() + 1e-9), kind
        assert sum(each.any() for each in heat) > 1, kind


def test_grad_cam_of_averaged_tokens_is_cam_over_their_number() -> None:
    make, spec = TOWERS["ConvNeXt"]
    clip = from_open_clip(make(), tokenizer, spec)
    rgb = np.random.default_rng(2).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    ours = explainer_of("grad_cam", clip).explain(rgb, [PHRASES])[0]
    for found, wanted in zip(ours, Cam(CamConfig(), clip).explain(rgb, [PHRASES])[0], strict=True):
        assert wanted.values.any()
        assert np.allclose(12 * found.values, wanted.values, atol=1e-5 * wanted.values.max())


def test_the_alphas_are_one_half_where_the_scale_is_small_and_finite_where_it_is_large() -> None:
    clip = from_open_clip(tiny_clip(), tokenizer, SPEC)
    tiny, large = (explainer_of("grad_cam_plus_plus", clip, scale=scale) for scale in (1e-6, 1e6))
    features, gradient = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3)).unbind()
    wanted = (features @ gradient.relu().sum(dim=0)).relu() / 2
    assert wanted.any()
    assert torch.allclose(tiny.weighed(features, gradient) / 1e-6, wanted, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(large.weighed(features, gradient)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_not_there_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"explain\.layer: .* has 4 blocks, not 5"):
        explainer_of(kind, from_open_clip(tiny_clip(), tokenizer, SPEC), layer=5)
