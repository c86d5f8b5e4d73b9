"""The bottleneck against torch's own divergence and an optimum in closed form; maps by noise that nobody shares."""

from typing import Any

import pytest
import torch

from stages.explainers.m2ib import Bottleneck
from tests.factories import tiny_clip
from tests.stages.explain import models

RGB = models.image(rows=3, columns=3, count=2, seed=3)
MAKE = torch.Generator().manual_seed(5)
X = torch.randn(4, 6, generator=MAKE)


def bottleneck(**settings: Any) -> Bottleneck:
    return Bottleneck(**settings)


def make_explainer(layers: int = 3, **settings: Any) -> Any:
    return models.make_explainer("m2ib", tiny_clip(layers=layers), **settings)


@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_nats_are_the_divergence_of_two_normals(variance: float) -> None:
    a = torch.linspace(-8, 8, X.numel()).view_as(X)
    through = a.sigmoid()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(through * X, (1 - through) * variance**0.5),
        torch.distributions.Normal(torch.zeros_like(X), torch.full_like(X, variance**0.5)),
    )
    assert torch.allclose(bottleneck(variance=variance).nats(X, a), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variance", [1.0, 2.0])
def test_the_optimum_of_a_linear_score(variance: float) -> None:
    """Where noise has no effect on the mean score w · z, dL/dl = 0 is a quadratic equation for u = 1 - l:

    beta / n · (1 / u - u + (1 - u) x² / v) = w x, with k = w x n / beta: (1 + x²/v) u² + (k - x²/v) u - 1 = 0.
    """
    beta = 0.5
    k = 2 + 6 * torch.rand(X.shape, generator=torch.Generator().manual_seed(6))
    weights = k * beta / X.numel() / X
    fitting = bottleneck(beta=beta, steps=400, learning_rate=0.1, variance=variance)
    weight = fitting.fit(X, lambda z: (z * weights).sum(dim=(1, 2))).sigmoid()
    square = X.square() / variance
    root = ((k - square).square() + 4 * (1 + square)).sqrt()
    expected = 1 - (root - (k - square)) / (2 * (1 + square))
    assert expected.min() > 0.2
    assert expected.max() > 0.7
    assert torch.allclose(weight, expected, atol=1e-3)


def test_what_nothing_is_wanted_of_is_closed() -> None:
    weights = torch.zeros_like(X)
    weights[1] = 0.2 * X[1].sign()
    fitting = bottleneck(steps=400, learning_rate=0.1)
    nats = fitting.nats(X, fitting.fit(X, lambda z: (z * weights).sum(dim=(1, 2)))).sum(dim=1)
    assert nats[1] > 1
    assert nats[[0, 2, 3]].max() < 0.05


def test_behind_the_bottleneck_is_the_rest_of_the_tower() -> None:
    for name in ("class token", "ResNet", "SigLIP", "ConvNeXt"):
        explainer = models.make_explainer("m2ib", name, depth=0.5)
        rgb = torch.from_numpy(models.image(name, 3, 3))
        tokens, embedding = explainer._parts
        with torch.no_grad():
            expected = explainer.model.tower.encode(rgb)
            assert torch.allclose(embedding(tokens(rgb)[0], (3, 3)), expected, rtol=1e-4, atol=1e-5)


def test_the_layer_is_that_of_the_authors_on_twelve_blocks_and_never_behind_the_last() -> None:
    for layers, before in ((12, 10), (3, 2), (1, 0)):
        explainer = make_explainer(layers)
        rgb = torch.from_numpy(RGB[:1])
        tokens = explainer._parts[0](rgb)[0]
        assert torch.equal(tokens, explainer.model.tower.tokens_before(rgb, before)[0])


@pytest.mark.parametrize("depth", [0.0, 1.0])
def test_affinity_looks_at_its_own_block(depth: float) -> None:
    """Before the bottleneck, or behind it."""
    explainer = make_explainer(affinity="propagation", affinity_depth=depth)
    tower = explainer.model.tower
    block = explainer.early_block
    assert block == (2 if depth else 0)
    rgb = torch.from_numpy(RGB)
    with torch.no_grad():
        x, patches = explainer._parts[0](rgb)
        assert torch.equal(x, tower.tokens_before(rgb, 2)[0])
        assert patches is not None
        assert torch.equal(patches, tower.tokens_before(rgb, block)[0][:, 1:])
