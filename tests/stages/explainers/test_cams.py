"""Grad-CAM and Grad-CAM++: the papers' sums in loops over float64 features of open_clip's own modules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.factories import TOWERS
from tests.stages.explain.models import PHRASES, clip_of, image, make_explainer, module_of
from tests.stages.explainers.captured import capture

SCALE = 1 / 0.07  # of a model of open_clip before its training
KINDS = ["grad_cam", "grad_cam_plus_plus"]
Floats = NDArray[np.float64]

PLACES = {
    "class token": "transformer.resblocks.3.ln_1",
    "timm, class token": "trunk.blocks.4",
    "ResNet": "layer4",
    "EVA02": "trunk.blocks.10",
    "SigLIP": "trunk.norm",
    "ConvNeXt": "trunk.norm_pre",
}
"""Tower -> the module whose output has the features, with or without tokens that are no patches."""


def by_hand(kind: str, x: Floats, g: Floats) -> Floats:
    """Features and gradients (N, D) -> a map, as the papers write it."""
    n, d = x.shape
    weights = np.zeros(d)
    for k in range(d):
        if kind == "grad_cam":
            weights[k] = sum(g[:, k]) / n
            continue
        total = max(sum(x[:, k]), 0)
        weights[k] = sum(s**2 / (2 * s**2 + total * s**3) * s for s in SCALE * g[:, k] if s > 0)
    return np.array([max(sum(weights * row), 0) for row in x])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PLACES)
def test_the_formulas(name: str) -> None:
    spec = TOWERS[name][1]
    side = spec.size_px // spec.patch_px
    clip = clip_of(name, seed=1)
    rgb = image(name, side, side, seed=1)
    pixels = clip.tower.normalise(torch.from_numpy(rgb))[0]
    captured = capture(module_of(name, seed=1), pixels, PLACES[name])
    (features,) = captured.outputs
    for kind in KINDS:
        explainer = make_explainer(kind, clip)
        texts = explainer.texts(PHRASES)
        texts = torch.cat([texts, -texts, torch.zeros(4, clip.embed_dim)])  # a map of zeros is one of two
        heat = []
        maps = explainer.maps(torch.from_numpy(rgb)).heat(texts[None])[0]
        for text, values in zip(texts[:4], maps, strict=False):
            (gradient,) = captured.gradients(text, [features])
            x, g = (
                (part[0].flatten(1).T if part.dim() == 4 else part[0, -side * side :]).detach().numpy()
                for part in (features, gradient)
            )
            heat.append(by_hand(kind, x, g))
            assert np.allclose(values.numpy(), heat[-1], rtol=0, atol=1e-6 * heat[-1].max()), kind
        assert sum(expected.any() for expected in heat) > 1, kind


@pytest.mark.usefixtures("float64")
def test_grad_cam_of_averaged_tokens_is_cam_over_their_number() -> None:
    rgb = image("ConvNeXt", 3, 4)
    ours, theirs = (
        make_explainer(kind, "ConvNeXt", contrast=0.0).explain(rgb, [PHRASES])[0]
        for kind in ("grad_cam", "cam")
    )
    for heat_map, expected in zip(ours, theirs, strict=True):
        assert expected.values.any()
        assert np.allclose(12 * heat_map.values, expected.values, rtol=0, atol=1e-6 * expected.values.max())


def test_the_alphas_are_one_half_where_the_scale_is_small_and_finite_where_it_is_large() -> None:
    tiny, large = (
        make_explainer("grad_cam_plus_plus", replace(clip_of(), logit_scale=scale)) for scale in (1e-6, 1e3)
    )
    features, gradient = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3)).unbind()
    expected = (features @ gradient.relu().sum(dim=0)).relu() / 2
    assert expected.any()
    assert torch.allclose(tiny._weigh(features, gradient) / 1e-6, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(large._weigh(features, gradient)).all()
