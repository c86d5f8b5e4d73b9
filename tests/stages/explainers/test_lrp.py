"""Relevance by gradients against relevance layer by layer, what becomes of the score, and contrasts by the papers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.explain.maps import cosines_of
from phrasebox.stages.explainers.lrp import Propagation
from phrasebox.stages.explainers.lrp_rules import detach_gate
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.layers import NOTHING, Chain, LayerNorm, Linear
from phrasebox.stages.model.towers.pooled import AttentionPool, AveragedTower, PooledTower
from phrasebox.stages.model.towers.tower import Placement
from phrasebox.stages.model.towers.vision import VisionTower
from tests.build.datasets import Json
from tests.closeness import assert_close
from tests.factories import TOWERS, tiny_clip
from tests.stages.explain.models import clip_of, make_explainer
from tests.stages.explainers.explicit import Explicit, in_float64


def clip(**vision: Any) -> ClipModel:
    return clip_of(tiny_clip(layers=2, width=16, head_width=8, spread=8.0, **vision))


def tower_of(model: ClipModel) -> VisionTower:
    assert isinstance(model.tower, VisionTower)
    return model.tower


def image(model: ClipModel, cells: int = 2) -> Tensor:
    side = cells * model.input.patch_px
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, side, side, 3), dtype=np.uint8))


@pytest.mark.usefixtures("float64")
def test_gradients_of_the_rules_are_relevance_layer_by_layer() -> None:
    model = clip(ls_init_value=0.5, no_ln_pre=True)
    tower = tower_of(model)
    rgb = image(model)
    text = model.encode_text(["dog"])[0]
    heat = Propagation(tower, None)(rgb).heat(F.normalize(text, dim=0)[None, None])
    explicit = Explicit()
    with torch.no_grad():
        x = tower.embed(rgb).double()
    relevance, cosine = explicit.tower(in_float64(tower), x, F.normalize(text.double(), dim=0))
    share = 1 - tower.positions((2, 2)).double()[1:] / x[:, 1:]
    expected = (relevance[:, 1:] * share).sum(dim=-1)
    assert expected.abs().max() > 1e-3
    assert_close(heat[0], expected, 1e-9)
    # Conservation: what comes out at the tokens and what layers keep is the score.
    largest = max(map(abs, [cosine, *explicit.losses]))
    assert float(relevance.sum()) + sum(explicit.losses) == pytest.approx(cosine, abs=1e-9 * largest)


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_by_the_rules_embeds_as_it_did(name: str) -> None:
    model = clip_of(name)
    rgb = image(model, 3)
    with torch.no_grad():
        embedding = model.tower.encode(rgb)
    maps = Propagation(model.tower, None)(rgb)
    assert_close(maps.embedding, embedding, 1e-4)


COMMON: Json = {"placement": Placement(stride_px=1), "dtype": torch.float32}
COMMON |= {"mean": torch.zeros(3), "std": torch.ones(3)}
BLACK = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)


def test_a_pool_is_gone_through_layer_by_layer() -> None:
    make = torch.Generator().manual_seed(7)

    def linear(*, bias: bool = True) -> Linear:
        weight = torch.randn(8, 8, generator=make, dtype=torch.float64)
        return Linear(weight, torch.randn(8, generator=make, dtype=torch.float64) if bias else None)

    latent, tokens = (
        torch.randn(*shape, generator=make, dtype=torch.float64) for shape in ((8,), (1, 4, 8))
    )
    layers = {name: linear() for name in ("q", "k", "v", "out")}
    pool = AttentionPool(heads=2, latent=latent, prefix_tokens=0, finish=NOTHING, **layers)
    tower = PooledTower(kind="latent_pool", trunk=lambda _: tokens.float(), pool=pool, **COMMON)
    text = F.normalize(torch.randn(8, generator=make, dtype=torch.float64), dim=0)
    heat = Propagation(tower, None)(BLACK).heat(text.float()[None, None])
    explicit = Explicit()
    relevance, cosine = explicit.pool(pool, tokens, text)
    assert_close(heat[0], relevance.sum(dim=-1), 1e-3)
    largest = max(map(abs, [cosine, *explicit.losses]))
    assert float(relevance.sum()) + sum(explicit.losses) == pytest.approx(cosine, abs=1e-9 * largest)


def test_a_mean_and_a_head_in_closed_form() -> None:
    """LayerNorm and one matrix: R_i = x_i / N · centred(gamma / sd · Wᵀ t / |e|)."""
    make = torch.Generator().manual_seed(8)
    tokens, weight = (torch.randn(*shape, generator=make) for shape in ((1, 4, 6), (5, 6)))
    norm = LayerNorm(1 + torch.rand(6, generator=make), torch.randn(6, generator=make), 1e-5)
    text = F.normalize(torch.randn(5, generator=make), dim=0)
    tower = AveragedTower(trunk=lambda _: tokens, finish=Chain((norm, Linear(weight, None))), **COMMON)
    relevance = Propagation(tower, None)(BLACK).heat(text[None, None])
    mean = tokens[0].mean(dim=0)
    e = weight @ F.layer_norm(mean, (6,), norm.weight, norm.bias)
    at_mean = norm.weight / mean.std(correction=0) * (weight.T @ text) / e.norm()
    expected = tokens[0] @ (at_mean - at_mean.mean()) / 4
    assert_close(relevance[0, 0], expected)


def test_an_activation_passes_relevance_even_at_zero() -> None:
    x = torch.tensor([-2.0, 0.0, 1.5], requires_grad=True)
    y = detach_gate(F.gelu)(x)
    assert_close(y, F.gelu(x))
    relevance = torch.tensor([0.3, 0.0, -0.7])
    (gradient,) = torch.autograd.grad(y, x, torch.where(y == 0, 1.0, relevance / y).detach())
    assert_close(x * gradient, relevance)
    assert gradient[1] == pytest.approx(0.5, abs=1e-5)


def test_a_map_is_what_speaks_for_the_phrase() -> None:
    model = clip()
    explainer = make_explainer("lrp", model)
    rgb = image(model, 3)
    texts = explainer.texts(["dog", "red car"])[None]
    signed = explainer.propagation(rgb).heat(texts)
    assert signed.min() < 0 < signed.max()
    assert torch.equal(explainer.maps(rgb).heat(texts), signed.clamp(min=0))
    assert "patent" in explainer.claim


@pytest.mark.parametrize(("kind", "seed"), [("lrp", 0), ("transformer_interpretability", 1)])
def test_weights_of_16_bits_give_nearly_the_same_maps(kind: str, seed: int) -> None:
    """Everything behind the trunk computes in float32, with weights that were rounded.

    The rules of `transformer_interpretability` may divide by values near zero. With seed 0 the relevance of a row of
    attention changes its sign when weights change by a ten-thousandth, all in float32; with seed 1 it does not.
    """
    maps = []
    for precision in (None, torch.bfloat16):
        model = clip_of(tiny_clip(seed, layers=2, width=16, head_width=8, precision=precision))
        assert model.tower.dtype == (precision or torch.float32)
        maps.append(make_explainer(kind, model).explain(image(model, 3).numpy(), [["dog"]])[0][0].values)
    assert maps[1].dtype == np.float32
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.99


# Contrasts


RGB = np.random.default_rng(3).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
SIGNED = torch.tensor([[0.3, -0.1, 0.05], [0.1, 0.2, -0.08], [-0.3, 0.2, 0.25]], dtype=torch.float64)
COSINES = SIGNED.sum(dim=1)


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return clip_of(tiny_clip(layers=2, width=16, head_width=8))


def test_clrp_subtracts_the_mean_of_the_others(model: ClipModel) -> None:
    contrasts = make_explainer("clrp", model).contrast(SIGNED, COSINES)
    for target in range(3):
        first, second = (other for other in range(3) if other != target)
        assert_close(contrasts[target], SIGNED[target] - (SIGNED[first] + SIGNED[second]) / 2, 1e-9)


def test_sg_lrp_starts_at_the_gradient_of_the_softmax(model: ClipModel) -> None:
    """R_k counts by dy_k / dz_k = y_k (1 - y_k) and R_n by dy_k / dz_n = -y_k y_n."""
    scale = 7.0
    contrasts = make_explainer("sg_lrp", replace(model, logit_scale=scale)).contrast(SIGNED, COSINES)
    z = (scale * COSINES).requires_grad_()
    y = z.softmax(dim=0)
    for target in range(3):
        (starts,) = torch.autograd.grad(y[target], z, retain_graph=True)
        assert_close(contrasts[target] * starts[target], starts @ SIGNED, 1e-9)


def test_a_phrase_alone_is_contrasted_with_the_background(model: ClipModel) -> None:
    lrp = make_explainer("lrp", model)
    relevance = lrp.propagation(torch.from_numpy(RGB[:1])).heat(lrp.texts(["dog", ""])[None])[0]
    map_ = make_explainer("clrp", model).explain(RGB[:1], [["dog"]])[0][0]
    expected = (relevance[0] - relevance[1]).relu().unflatten(0, (3, 3)).numpy()
    assert expected.any()
    assert_close(map_.values, expected, 1e-4)


@pytest.mark.parametrize("kind", ["clrp", "sg_lrp"])
def test_only_the_images_own_phrases_count(model: ClipModel, kind: str) -> None:
    """A neighbour with more phrases than one step changes the padding, and not the maps of the others."""
    explainer = make_explainer(kind, model)
    small = explainer.explain(RGB, [["dog", "red car"], ["fish"]])
    large = explainer.explain(RGB, [["dog", "red car"], ["fish", *"abcdefgh"]])
    for heat_map, other in zip(small[0], large[0], strict=True):
        assert_close(heat_map.values, other.values, 1e-4)
    assert not np.array_equal(small[1][0].values, large[1][0].values)


@pytest.mark.parametrize("kind", ["clrp", "sg_lrp"])
def test_the_difference_of_the_cosines_is_explained(model: ClipModel, kind: str) -> None:
    """LRP of the text that is the difference of the phrase and the others."""
    explainer = make_explainer(kind, model)
    texts = explainer.texts(["dog", "red car", ""])
    rgb = torch.from_numpy(RGB[:1])
    cosines = cosines_of(explainer.propagation(rgb).embedding, texts[None])[0]
    difference = texts[0] - explainer._shares(cosines[1:]) @ texts[1:]
    expected = explainer.propagation(rgb).heat(difference[None, None])[0, 0].relu()
    values = explainer.maps(rgb).heat(texts[None, :2])[0, 0]
    assert_close(values, expected, 1e-4)
