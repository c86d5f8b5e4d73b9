"""GEM and CLIP Surgery, in loops over heads and tokens on what open_clip's own forward pass has, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from stages.explain import EXPLAINERS
from stages.explainers.dense.clip_surgery import ClipSurgery, ClipSurgeryConfig, without_shared
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.pooled import PooledTower
from tests.factories import SPEC, TOWERS, tiny_clip
from tests.stages.explainers.attention.captured import Captured, capture

PHRASES = ["red car", "dog"]
BACKGROUND = ("sky", "grass", "a wall")
tokenizer = open_clip.get_tokenizer("ViT-B-32")
Floats = NDArray[np.float64]
RGB = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


def softmax(x: Floats) -> Floats:
    e: Floats = np.exp(x - x.max())
    return e / e.sum()


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def among(p: Floats, v: Floats, sharpness: float) -> Floats:
    """Each token's mean of v by the products of its p with all others."""
    return np.stack([softmax(sharpness * (p @ own)) @ v for own in p])


def mixed_by_gem(q: Floats, k: Floats, v: Floats, z: Floats, iterations: int) -> Floats:
    sharpness = float(np.mean([np.linalg.norm(token) for token in z])) / v.shape[1] ** 0.5
    answer = np.zeros_like(v)
    for p in (q, k, v):
        own = unit(p)
        for _ in range(iterations):
            own = unit(among(own, own, sharpness))
        answer += among(own, v, sharpness) / 3
    return answer


def patches_of(model: Any, explainer: Any, blocks: int, mixed: Any) -> tuple[Floats, Captured]:
    """Unit embeddings (N, E) of the patches on the second path: the tokens, and what each attention adds to them."""
    names = [f"transformer.resblocks.{n}" for n in range(4)]
    pixels = explainer.model.tower.normalised(torch.from_numpy(RGB))[0]
    captured = capture(model, pixels, "ln_pre", *names, *(f"{name}.ln_1" for name in names))
    outputs, normed = captured.seen[:1] + captured.seen[2::2], captured.seen[1::2]
    second = outputs[4 - blocks][0].detach()
    for n in range(4 - blocks, 4):
        q, k, v = (part[n][0].detach().numpy() for part in (captured.queries, captured.keys, captured.values))
        z = normed[n][0].detach().numpy()
        heads = [mixed(q[h], k[h], v[h], z) for h in range(len(v))]
        block = captured.visual.transformer.resblocks[n]
        added = block.attn.out_proj(torch.from_numpy(np.concatenate(heads, axis=1)))
        second = second + block.ls_1(added).detach()
    dense = captured.visual.ln_post(second[1:]) @ captured.visual.proj
    return unit(dense.detach().numpy()), captured


def compare(explainer: Any, wanted: list[Floats], captured: Captured) -> None:
    for text, found, heat in zip(PHRASES, explainer.explain(RGB, [PHRASES])[0], wanted, strict=True):
        assert np.ptp(heat) > 0.01
        assert np.allclose(found.values.ravel(), heat - heat.min(), atol=1e-5)
        cosine = captured.cosine(explainer.texts([text])[0]).item()
        assert found.similarity == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "blocks", "iterations"),
    [({}, 4, 1), ({"blocks": 2}, 2, 1), ({"blocks": 1, "iterations": 0}, 1, 0), ({"blocks": 3, "iterations": 3}, 3, 3)],
)
def test_gem(settings: dict[str, Any], blocks: int, iterations: int) -> None:
    model = tiny_clip(ls_init_value=0.5)
    gem = EXPLAINERS["gem"]
    explainer = gem(gem.config_type(**settings), from_open_clip(model, tokenizer, SPEC))
    dense, captured = patches_of(model, explainer, blocks, lambda q, k, v, z: mixed_by_gem(q, k, v, z, iterations))
    compare(explainer, [dense @ text for text in explainer.texts(PHRASES).double().numpy()], captured)


@pytest.mark.parametrize("background", [(), BACKGROUND])
@pytest.mark.parametrize(("settings", "blocks"), [({}, 4), ({"blocks": 2}, 2)])
def test_clip_surgery(settings: dict[str, Any], blocks: int, background: tuple[str, ...]) -> None:
    model = tiny_clip(ls_init_value=0.5)
    config = ClipSurgeryConfig(background=background, **settings)
    explainer = ClipSurgery(config, from_open_clip(model, tokenizer, SPEC))
    dense, captured = patches_of(model, explainer, blocks, lambda q, k, v, z: among(v, v, v.shape[1] ** -0.5))
    texts = explainer.texts(PHRASES).double().numpy()
    if background:
        whole = unit(captured.embedding.detach().numpy())
        wanted = [by_elements(dense, whole, text, explainer.texts(background).double().numpy()) for text in texts]
    else:
        wanted = [dense @ text - dense @ explainer.texts([""])[0].double().numpy() for text in texts]
    compare(explainer, wanted, captured)


def by_elements(dense: Floats, whole: Floats, text: Floats, background: Floats) -> Floats:
    """The authors' order of things: products of single elements of the features, less their mean over the texts."""
    everything = np.concatenate([text[None], background])
    probability = softmax(2 * everything @ whole)
    weight = probability / probability.mean()
    features = np.stack([w * dense * own for w, own in zip(weight, everything, strict=True)])
    heat: Floats = (features - features.mean(axis=0))[0].sum(axis=1)
    return heat


def test_texts_that_say_nothing_new_take_the_map_away() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, whole, texts = (
        torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
        for shape in ((2, 5, 8), (2, 8), (2, 3, 8))
    )
    assert (
        without_shared(patches, whole, texts[:1].expand(2, -1, -1), texts[0, :1].expand(4, -1))[:, 0].abs().max() < 1e-6
    )
    assert without_shared(patches, whole, texts, texts[1, :2]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["ResNet", "SigLIP"])
def test_clip_surgery_on_a_pool(name: str) -> None:
    make, spec = TOWERS[name]
    explainer = ClipSurgery(ClipSurgeryConfig(), from_open_clip(make(), tokenizer, spec))
    tower = explainer.model.tower
    assert isinstance(tower, PooledTower)
    side = 3 * spec.patch_px
    rgb = np.random.default_rng(2).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    with torch.no_grad():
        seen = tower.look(torch.from_numpy(rgb))
        values = seen.values[0].unflatten(-1, (tower.pool.heads, -1)).double().numpy()
        heads = [among(values[:, h], values[:, h], values.shape[2] ** -0.5) for h in range(tower.pool.heads)]
        mixed = torch.from_numpy(np.concatenate(heads, axis=1)).float()
        projected = tower.pool.scale(tower.pool.out(mixed))
        if seen.residual is not None:
            projected = projected + seen.residual[0]
        dense = unit(tower.pool.finish(projected).double().numpy())
    for text, found in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        direction = (explainer.texts([text]) - explainer.texts([""]))[0].double().numpy()
        heat = dense @ direction
        assert np.ptp(heat) > 1e-3
        assert np.allclose(found.values.ravel(), heat - heat.min(), atol=1e-5)


@pytest.mark.parametrize("kind", ["gem", "clip_surgery"])
def test_a_map_does_not_depend_on_the_other_phrases_of_its_image(kind: str) -> None:
    explainer = EXPLAINERS[kind]
    background = {"background": BACKGROUND} if kind == "clip_surgery" else {}
    found = explainer(explainer.config_type(**background), from_open_clip(tiny_clip(), tokenizer, SPEC))
    alone = found.explain(RGB, [["dog"]])[0][0]
    among_many = found.explain(RGB, [[*(f"cat {n}" for n in range(12)), "dog"]])[0][-1]
    assert np.array_equal(alone.values, among_many.values)
