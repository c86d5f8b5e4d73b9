"""MaskCLIP, GEM and CLIP Surgery, in loops over heads and tokens on open_clip's own forward pass, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from phrasebox.stages.model.towers.pooled import PooledTower
from tests.factories import tiny_clip
from tests.stages.explain.models import PHRASES, image, make_explainer
from tests.stages.explainers.captured import Captured, Floats, assert_formula

Mixing = Callable[[Floats, Floats, Floats, Floats], Floats]
"""Queries, keys and values of a head (T, d), and tokens (T, D) -> mixed values (T, d)."""


def softmax(x: Floats) -> Floats:
    e: Floats = np.exp(x - x.max())
    return e / e.sum()


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def among(p: Floats, v: Floats, sharpness: float) -> Floats:
    """Each token's mean of v by the products of its p with all others."""
    return np.stack([softmax(sharpness * (p @ vector)) @ v for vector in p])


def mix_by_gem(q: Floats, k: Floats, v: Floats, z: Floats) -> Floats:
    sharpness = float(np.mean([np.linalg.norm(token) for token in z])) / v.shape[1] ** 0.5
    answer = np.zeros_like(v)
    for p in (q, k, v):
        vectors = unit(among(unit(p), unit(p), sharpness))
        answer += among(vectors, v, sharpness) / 3
    return answer


def mix_by_surgery(q: Floats, k: Floats, v: Floats, z: Floats) -> Floats:
    return among(v, v, v.shape[1] ** -0.5)


def above_least(dense: Floats, direction: Tensor) -> Floats:
    heat: Floats = dense @ direction.numpy()
    return heat - heat.min()


def direction_of(kind: str, explainer: Any, text: Tensor) -> Tensor:
    return text - explainer.texts([""])[0] if kind == "clip_surgery" else text


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "mix"), [("gem", mix_by_gem), ("clip_surgery", mix_by_surgery)])
@pytest.mark.parametrize(("layers", "blocks"), [(5, 2), (1, 1)])
def test_the_second_path(kind: str, mix: Mixing, layers: int, blocks: int) -> None:
    """The tokens before the last blocks, and what each attention adds to them."""
    model = tiny_clip(layers=layers, ls_init_value=0.5)
    explainer = make_explainer(kind, model)
    names = [f"transformer.resblocks.{number}" for number in range(layers)]

    def expect(captured: Captured, text: Tensor) -> Floats:
        before, *outputs = captured.outputs[::2]
        normed = captured.outputs[1::2]
        second = [before, *outputs][layers - blocks][0].detach()
        for number in range(layers - blocks, layers):
            parts = (captured.queries, captured.keys, captured.values)
            q, k, v = (part[number][0].detach().numpy() for part in parts)
            z = normed[number][0].detach().numpy()
            heads = [mix(q[head], k[head], v[head], z) for head in range(len(v))]
            block = captured.visual.transformer.resblocks[number]
            second = second + block.ls_1(
                block.attn.out_proj(torch.from_numpy(np.concatenate(heads, axis=1)))
            )
        dense = captured.visual.ln_post(second[1:]) @ captured.visual.proj
        return above_least(unit(dense.detach().numpy()), direction_of(kind, explainer, text))

    watched = [name for block in names for name in (f"{block}.ln_1", block)]
    assert_formula(explainer, expect, "ln_pre", *watched, model=model)


@pytest.mark.usefixtures("float64")
def test_maskclip_is_open_clip_with_a_patch_attending_to_itself() -> None:
    model = tiny_clip(layers=2, ls_init_value=0.5)

    def expect(captured: Captured, text: Tensor) -> Floats:
        last = captured.visual.transformer.resblocks[-1]
        values = captured.values[-1][0].transpose(0, 1).flatten(1)[1:]
        dense = captured.visual.ln_post(last.ls_1(last.attn.out_proj(values))) @ captured.visual.proj
        return above_least(unit(dense.detach().numpy()), text)

    assert_formula(make_explainer("maskclip", model), expect, model=model)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["ResNet", "timm, SAME", "SigLIP", "ConvNeXt"])
def test_maskclip_on_other_towers_is_the_embedding_of_one_token(name: str) -> None:
    explainer = make_explainer("maskclip", name)
    tower = explainer.model.tower

    def expect(captured: Captured, text: Tensor) -> Floats:
        side = round(tower.placement.grid_hw(*[explainer.model.input.size_px] * 2)[0])
        tokens = tower.embed(torch.from_numpy(image(name, side, side)))
        if isinstance(tower, PooledTower):
            # The first token asks in some pools, and is looked at too: there it is the patch itself.
            prefix = tower.pool.prefix_tokens
            single = [tokens[:, [prefix + n] * (prefix + 1)] for n in range(side * side)]
            embeddings = [
                tower.pool.embedding(tower.pool.pool_tokens(patch, (1, 1)))[0] for patch in single
            ]
        else:
            embeddings = [tower.finish(token) for token in tokens[0]]
        return above_least(unit(torch.stack(embeddings).numpy()), text)

    assert_formula(explainer, expect, tower=name)


def test_an_image_of_one_colour_has_no_heat_and_says_why() -> None:
    model = tiny_clip(layers=2)
    model.visual.positional_embedding.data.zero_()
    rgb = np.full((1, 32, 32, 3), 90, dtype=np.uint8)
    maps = make_explainer("maskclip", model).explain(rgb, [PHRASES])[0]
    assert [heat_map.fault for heat_map in maps] == ["constant", "constant"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "tokens"), [("ResNet", "layer4"), ("SigLIP", "trunk.norm")])
def test_clip_surgery_on_pools(name: str, tokens: str) -> None:
    """The authors' `AttentionPool2d` with the mean token among the others; and the same form where a latent asks."""
    explainer = make_explainer("clip_surgery", name)

    def expect(captured: Captured, text: Tensor) -> Floats:
        values = captured.values[-1][0].detach().numpy()
        heads = [among(unit(v), v, 8 * v.shape[1] ** -0.5) for v in values]
        mixed = torch.from_numpy(np.concatenate(heads, axis=1))
        if name == "ResNet":
            dense = captured.visual.attnpool.c_proj(mixed)[1:]
        else:
            pool = captured.visual.trunk.attn_pool
            projected = pool.proj(mixed)
            dense = projected + pool.mlp(pool.norm(projected))
        direction = direction_of("clip_surgery", explainer, text)
        return above_least(unit(dense.detach().numpy()), direction)

    assert_formula(explainer, expect, tower=name)
