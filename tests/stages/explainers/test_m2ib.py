"""The bottleneck against torch's own divergence and an optimum in closed form; maps behind the right blocks."""

import pytest
import torch

from phrasebox.stages.explainers.m2ib import fit_bottleneck, nats
from tests.closeness import assert_close
from tests.factories import tiny_clip
from tests.stages.explain import models

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))


def test_nats_are_the_divergence_of_two_normals() -> None:
    a = torch.linspace(-8, 8, X.numel()).view_as(X)
    through = a.sigmoid()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(through * X, 1 - through),
        torch.distributions.Normal(torch.zeros_like(X), torch.ones_like(X)),
    )
    assert_close(nats(X, a), expected, 1e-4)


def test_the_optimum_of_a_linear_score() -> None:
    """Where noise has no effect on the mean score w · z, dL/dl = 0 is a quadratic equation for u = 1 - l:

    beta / n · (1 / u - u + (1 - u) x²) = w x, with k = w x n / beta: (1 + x²) u² + (k - x²) u - 1 = 0.
    """
    beta = 0.5
    k = 2 + 6 * torch.rand(X.shape, generator=torch.Generator().manual_seed(6))
    k[1] = 0  # nothing is wanted of this token, which is closed
    weights = k * beta / X.numel() / X
    a = fit_bottleneck(X, lambda z: (z * weights).sum(dim=(1, 2)), beta, steps=400, learning_rate=0.1)
    square = X.square()
    root = ((k - square).square() + 4 * (1 + square)).sqrt()
    expected = 1 - (root - (k - square)) / (2 * (1 + square))
    assert expected.max() > 0.7
    assert torch.allclose(a.sigmoid()[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-3)
    assert nats(X, a)[1].sum() < 0.05


def test_behind_the_bottleneck_is_the_rest_of_the_tower() -> None:
    for name in ("class token", "ResNet", "SigLIP", "ConvNeXt"):
        explainer = models.make_explainer("m2ib", name)
        rgb = torch.from_numpy(models.image(name, 3, 3))
        tokens, embedding = explainer._parts
        with torch.no_grad():
            expected = explainer.model.tower.encode(rgb)
            assert_close(embedding(tokens(rgb), (3, 3)), expected)


@pytest.mark.parametrize(("layers", "before"), [(12, 10), (3, 2), (1, 0)])
def test_the_layer_is_that_of_the_authors_on_twelve_blocks_and_never_behind_the_last(
    layers: int, before: int
) -> None:
    explainer = models.make_explainer("m2ib", tiny_clip(layers=layers))
    rgb = torch.from_numpy(models.image())
    assert torch.equal(explainer._parts[0](rgb), explainer.model.tower.tokens_before(rgb, before)[0])
