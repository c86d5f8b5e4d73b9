"""MaskCLIP, GEM and CLIP Surgery, in loops over heads and tokens on open_clip's own forward pass, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.shared.model.towers.pooled import PooledTower
from tests.build.datasets import Json
from tests.factories import tiny_clip
from tests.stages.explain.models import PHRASES, image, make_explainer, module_of
from tests.stages.explainers.captured import Captured, capture

Floats = NDArray[np.float64]
RGB = image()


def compare(
    explainer: Any, rgb: NDArray[np.uint8], expected: list[Any], cosines: list[Any] | None = None
) -> None:
    """Maps are the wanted numbers of any sign, less their least, which differ among the patches."""
    for number, heat_map in enumerate(explainer.explain(rgb, [PHRASES])[0]):
        heat = np.asarray(expected[number])
        assert np.ptp(heat) > 1e-3
        assert np.allclose(heat_map.values.ravel(), heat - heat.min(), rtol=0, atol=1e-6)
        if cosines is not None:
            assert heat_map.similarity == pytest.approx(cosines[number].item(), abs=1e-6)


def cosines_with(dense: Tensor, explainer: Any) -> list[Any]:
    return list((explainer.texts(PHRASES) @ F.normalize(dense, dim=-1).T).numpy())


@pytest.mark.usefixtures("float64")
def test_maskclip_is_open_clip_with_a_patch_attending_to_itself() -> None:
    model = tiny_clip(layers=2, ls_init_value=0.5)
    explainer = make_explainer("maskclip", model)
    with torch.no_grad():
        visual = model.visual
        last = model.visual.transformer.resblocks[-1]
        pixels = explainer.model.tower.normalise(torch.from_numpy(RGB))
        x = visual.transformer.resblocks[0](visual._embeds(pixels))
        z = last.ln_1(x)
        itself = torch.full((z.shape[1], z.shape[1]), float("-inf")).fill_diagonal_(0)
        patches = last.ls_1(last.attn(z, z, z, need_weights=False, attn_mask=itself)[0])
        dense = (visual.ln_post(patches) @ visual.proj)[0, 1:]
        whole = F.normalize(model.encode_image(pixels), dim=-1)[0]
        compare(explainer, RGB, cosines_with(dense, explainer), list(explainer.texts(PHRASES) @ whole))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["ResNet", "timm, SAME", "SigLIP", "ConvNeXt"])
def test_maskclip_on_other_towers_is_the_embedding_of_one_token(name: str) -> None:
    explainer = make_explainer("maskclip", name)
    rgb = image(name, 3, 3)
    tower = explainer.model.tower
    tokens = tower.embed(torch.from_numpy(rgb))
    with torch.no_grad():
        if isinstance(tower, PooledTower):
            # The first token asks in some pools, and is looked at too: there it is the patch itself.
            prefix = tower.pool.prefix_tokens
            single = [tokens[:, [prefix + n] * (prefix + 1)] for n in range(9)]
            embeddings = [tower.pool.embedding(tower.pool.look(patch, (1, 1)))[0] for patch in single]
        else:
            embeddings = [tower.finish(token) for token in tokens[0]]
    compare(explainer, rgb, cosines_with(torch.stack(embeddings), explainer))


def test_an_image_of_one_colour_has_no_heat_and_says_why() -> None:
    model = tiny_clip(layers=2)
    model.visual.positional_embedding.data.zero_()
    maps = make_explainer("maskclip", model).explain(
        np.full((1, 32, 32, 3), 90, dtype=np.uint8), [PHRASES]
    )[0]
    assert [heat_map.fault for heat_map in maps] == ["constant", "constant"]


# The second path


def softmax(x: Floats) -> Floats:
    e: Floats = np.exp(x - x.max())
    return e / e.sum()


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def among(p: Floats, v: Floats, sharpness: float) -> Floats:
    """Each token's mean of v by the products of its p with all others."""
    return np.stack([softmax(sharpness * (p @ vector)) @ v for vector in p])


def mixed_by_gem(q: Floats, k: Floats, v: Floats, z: Floats) -> Floats:
    sharpness = float(np.mean([np.linalg.norm(token) for token in z])) / v.shape[1] ** 0.5
    answer = np.zeros_like(v)
    for p in (q, k, v):
        vectors = unit(among(unit(p), unit(p), sharpness))
        answer += among(vectors, v, sharpness) / 3
    return answer


def patches_of(model: Any, explainer: Any, blocks: int, mixed: Any) -> tuple[Floats, Captured]:
    """Unit embeddings (N, E) of the patches on the second path: the tokens, and what each attention adds to them."""
    layers = len(model.visual.transformer.resblocks)
    names = [f"transformer.resblocks.{n}" for n in range(layers)]
    pixels = explainer.model.tower.normalise(torch.from_numpy(RGB))[0]
    captured = capture(model, pixels, "ln_pre", *names, *(f"{name}.ln_1" for name in names))
    outputs = captured.outputs[:1] + captured.outputs[2::2]
    normed = captured.outputs[1::2]
    second = outputs[layers - blocks][0].detach()
    for n in range(layers - blocks, layers):
        q, k, v = (
            part[n][0].detach().numpy() for part in (captured.queries, captured.keys, captured.values)
        )
        z = normed[n][0].detach().numpy()
        heads = [mixed(q[h], k[h], v[h], z) for h in range(len(v))]
        block = captured.visual.transformer.resblocks[n]
        added = block.attn.out_proj(torch.from_numpy(np.concatenate(heads, axis=1)))
        second = second + block.ls_1(added).detach()
    dense = captured.visual.ln_post(second[1:]) @ captured.visual.proj
    return unit(dense.detach().numpy()), captured


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("layers", "settings", "blocks"),
    [(6, {}, 3), (12, {}, 6), (4, {"depth": 1}, 4), (4, {"depth": 0.1}, 1), (4, {"depth": 0.75}, 3)],
)
def test_gem(layers: int, settings: Json, blocks: int) -> None:
    model = tiny_clip(layers=layers, ls_init_value=0.5)
    explainer = make_explainer("gem", model, **settings)
    dense, captured = patches_of(model, explainer, blocks, mixed_by_gem)
    texts = explainer.texts(PHRASES)
    expected = [dense @ text for text in texts.double().numpy()]
    cosines = [captured.cosine(text) for text in texts]
    compare(explainer, RGB, expected, cosines)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("layers", "settings", "blocks"), [(6, {}, 3), (12, {}, 6), (4, {"depth": 1}, 4)])
def test_clip_surgery(layers: int, settings: Json, blocks: int) -> None:
    model = tiny_clip(layers=layers, ls_init_value=0.5)
    explainer = make_explainer("clip_surgery", model, **settings)
    dense, captured = patches_of(
        model, explainer, blocks, lambda q, k, v, z: among(v, v, v.shape[1] ** -0.5)
    )
    texts = explainer.texts(PHRASES)
    empty = dense @ explainer.texts([""])[0].double().numpy()
    expected = [dense @ text - empty for text in texts.double().numpy()]
    compare(explainer, RGB, expected, [captured.cosine(text) for text in texts])


def test_clip_surgery_on_a_resnet_s_pool() -> None:
    """The authors' `AttentionPool2d` on the grid of open_clip's own trunk, with the mean token among the others."""
    explainer = make_explainer("clip_surgery", "ResNet")
    rgb = image("ResNet")
    pixels = explainer.model.tower.normalise(torch.from_numpy(rgb))[0]
    captured = capture(module_of("ResNet"), pixels, "layer4")
    pool = captured.visual.attnpool
    grid = captured.outputs[0][0].flatten(1).T
    tokens = torch.cat([grid.mean(dim=0, keepdim=True), grid]) + pool.positional_embedding
    values = pool.v_proj(tokens).unflatten(-1, (pool.num_heads, -1)).detach().numpy()
    heads = []
    for v in values.transpose(1, 0, 2):
        u = np.stack([row / (np.linalg.norm(row) + 1e-6) for row in v])
        heads.append(among(u, v, 8 * v.shape[1] ** -0.5))
    dense = unit(pool.c_proj(torch.from_numpy(np.concatenate(heads, axis=1))).detach().numpy())[1:]
    texts = explainer.texts(PHRASES)
    directions = (texts - explainer.texts([""])).double().numpy()
    compare(
        explainer,
        rgb,
        [dense @ direction for direction in directions],
        [captured.cosine(text) for text in texts],
    )


def test_clip_surgery_on_a_siglip_s_pool() -> None:
    """The same form where a latent asks, in float64 on timm's own modules."""
    explainer = make_explainer("clip_surgery", "SigLIP")
    rgb = image("SigLIP", 10, 10)
    captured = capture(
        module_of("SigLIP"), explainer.model.tower.normalise(torch.from_numpy(rgb))[0], "trunk.norm"
    )
    pool = captured.visual.trunk.attn_pool
    with torch.no_grad():
        values = pool.kv(captured.outputs[0][0, -100:]).unflatten(-1, (2, pool.num_heads, -1))[:, 1].numpy()
        heads = [among(unit(v), v, 8 * v.shape[1] ** -0.5) for v in values.transpose(1, 0, 2)]
        projected = pool.proj(torch.from_numpy(np.concatenate(heads, axis=1)))
        dense = unit((projected + pool.mlp(pool.norm(projected))).numpy())
    directions = (explainer.texts(PHRASES) - explainer.texts([""])).double().numpy()
    compare(explainer, rgb, [dense @ direction for direction in directions])
