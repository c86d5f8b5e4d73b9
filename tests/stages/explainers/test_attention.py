"""Explainers that read attention, against open_clip's own forward pass and autograd in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stages.contract.errors import ConfigError
from stages.explainers.attention.rollout import last_attention
from stages.explainers.attention.walk import Walk, phrase_gradients
from tests.build.datasets import Json
from tests.factories import TOWERS, tiny_clip
from tests.messages import expect_error
from tests.stages.explain.models import PHRASES, clip_of, image, make_explainer, module_of
from tests.stages.explainers.captured import Captured, capture

Floats = NDArray[np.float64]


def capture_of(tower: str, explainer: Any, *watched: str) -> tuple[NDArray[np.uint8], Captured]:
    """An image, and open_clip's forward pass of it."""
    side = TOWERS[tower][1].size_px // TOWERS[tower][1].patch_px
    rgb = image(tower, side, side)
    pixels = explainer.model.tower.normalise(torch.from_numpy(rgb))[0]
    return rgb, capture(module_of(tower), pixels, *watched)


def cells_of(tower: str) -> int:
    return (TOWERS[tower][1].size_px // TOWERS[tower][1].patch_px) ** 2


@pytest.mark.parametrize("kind", ["game", "legrad"])
def test_more_blocks_than_there_are_are_refused(kind: str) -> None:
    with expect_error(ConfigError):
        make_explainer(kind, blocks=5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["class token", "timm, class token", "ResNet", "EVA02", "SigLIP"])
def test_raw_attention_is_the_first_row_of_the_last_attention(name: str) -> None:
    explainer = make_explainer("maskclip", name)
    rgb, captured = capture_of(name, explainer)
    row = captured.attention[-1][0, :, 0].mean(dim=0).detach()
    assert len(row) - cells_of(name) in (0, 1)
    expected = row[-cells_of(name) :].numpy()
    assert expected.max() > 1.2 * expected.min(), "far from uniform"
    assert np.allclose(last_attention(explainer.model, torch.from_numpy(rgb)), expected[None], rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["class token", "timm, class token", "ResNet", "SigLIP"])
def test_attention_gradient(name: str) -> None:
    explainer = make_explainer("attention_gradient", name)
    rgb, captured = capture_of(name, explainer)
    attention = captured.attention[-1]
    patches = slice(-cells_of(name), None)
    for text, heat_map in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        (gradient,) = captured.gradients(explainer.texts([text])[0], [attention])
        g = gradient[0, :, 0, patches].numpy()
        a = attention[0, :, 0, patches].detach().numpy()
        expected = np.maximum(g * a, 0).mean(axis=0)
        assert np.allclose(heat_map.values.ravel(), expected, rtol=0, atol=1e-6 * expected.max())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("settings", "blocks", "scale"),
    [({}, 4, 1 / 0.07), ({"blocks": 1}, 1, 1 / 0.07), ({"blocks": 3}, 3, 900.0)],
)
def test_game_is_the_papers_recursion_with_whole_matrices(
    settings: Json, blocks: int, scale: float
) -> None:
    explainer = make_explainer("game", replace(clip_of(), logit_scale=scale), **settings)
    rgb, captured = capture_of("class token", explainer)
    for text, heat_map in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        attention = captured.attention[-blocks:]
        gradients = captured.gradients(explainer.texts([text])[0], attention)
        relevance = np.eye(17)
        for weights, gradient in zip(attention, gradients, strict=True):
            product = scale * gradient[0].numpy() * weights[0].detach().numpy()
            relevance = relevance + np.maximum(product, 0).mean(axis=0) @ relevance
        expected = relevance[0, 1:].reshape(4, 4)
        assert np.allclose(heat_map.values, expected, rtol=0, atol=1e-6 * expected.max())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("settings", "blocks"), [({}, 2), ({"blocks": "all"}, 4), ({"blocks": 1}, 1)])
def test_legrad_on_blocks(settings: Json, blocks: int) -> None:
    explainer = make_explainer("legrad", **settings)
    rgb, captured = capture_of("class token", explainer, *(f"transformer.resblocks.{n}" for n in range(4)))
    for text, heat_map in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        embedding = explainer.texts([text])[0].double()
        expected = np.zeros(16)
        for tokens, attention in list(zip(captured.outputs, captured.attention, strict=True))[-blocks:]:
            meaning = captured.visual.ln_post(tokens[0].mean(dim=0)) @ captured.visual.proj
            (gradient,) = torch.autograd.grad(
                F.normalize(meaning, dim=0) @ embedding, attention, retain_graph=True
            )
            expected += np.maximum(gradient[0].numpy(), 0).mean(axis=(0, 1))[1:]
        assert np.allclose(heat_map.values.ravel(), expected, rtol=0, atol=1e-6 * expected.max())
        assert heat_map.similarity == pytest.approx(captured.cosine(embedding).item(), abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["ResNet", "SigLIP"])
def test_legrad_on_pools(name: str) -> None:
    explainer = make_explainer("legrad", name)
    rgb, captured = capture_of(name, explainer)

    def heat(text: str) -> Any:
        (gradient,) = captured.gradients(explainer.texts([text])[0], captured.attention[-1:])
        return np.maximum(gradient[0, :, 0, -cells_of(name) :].numpy(), 0).mean(axis=0)

    empty = heat("a photo of a")
    is_normal = (empty - empty.min()) / (empty.max() - empty.min()) <= 0.8
    assert not is_normal.all()
    for text, heat_map in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        expected = heat(text) * is_normal
        assert np.allclose(heat_map.values.ravel(), expected, rtol=0, atol=1e-6 * expected.max())


# The walk


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("blocks", "first"), [("all", 0), (2, 2)])
@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.5}], ids=["plain", "layer scale"])
def test_attention_tokens_and_gradients_are_open_clip_s_own(blocks: Any, first: int, vision: Json) -> None:
    model = tiny_clip(**vision)
    clip = clip_of(model)
    rgb = torch.from_numpy(image())
    texts = F.normalize(
        torch.randn(1, 8, clip.embed_dim, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    texts[:, 3:] = 0
    names = [f"transformer.resblocks.{n}" for n in range(4)]
    captured = capture(model, clip.tower.normalise(rgb)[0], *(f"{name}.ln_1" for name in names), *names)
    tensors = Walk(clip, blocks)(rgb)
    for name, ours, theirs in [
        ("attention", tensors.attention, captured.attention),
        ("normed", tensors.normed, captured.outputs[0::2]),
        ("tokens", tensors.tokens[1:], captured.outputs[1::2]),
    ]:
        assert len(ours) == 4 - first
        for actual, expected in zip(ours, theirs[first:], strict=True):
            assert np.allclose(actual.detach(), expected.detach(), rtol=0, atol=1e-9), name
        gradients_of_phrases = list(phrase_gradients(tensors.embedding, ours, texts))
        assert len(gradients_of_phrases) == 8
        for phrase in range(3):
            # Other rows that enter the last block have no part in the embedding.
            expected_gradients = captured.gradients(texts[0, phrase], theirs[first:])
            for actual, expected in zip(gradients_of_phrases[phrase], expected_gradients, strict=True):
                assert np.allclose(actual, expected, rtol=0, atol=1e-9 * float(expected.abs().max())), name
        assert not any(gradient.any() for gradient in gradients_of_phrases[5]), (
            "a row of zeros only fills up"
        )
    for phrase in range(3):
        cosine = float(F.normalize(tensors.embedding.detach(), dim=-1)[0] @ texts[0, phrase])
        assert cosine == pytest.approx(captured.cosine(texts[0, phrase]).item(), abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_inputs_and_kept_tokens_are_those_before_their_block() -> None:
    clip = clip_of()
    rgb = torch.from_numpy(image(rows=3, columns=5))
    tensors = Walk(clip, "all")(rgb)
    assert torch.equal(tensors.tokens[0], clip.tower.embed(rgb))
    for number in (0, 2, 3):
        expected, _ = clip.tower.tokens_before(rgb, number)  # type: ignore[attr-defined]
        early = Walk(clip, 2, number)(rgb).early
        assert not early.requires_grad
        assert torch.allclose(early, expected[:, 1:], rtol=0, atol=1e-9)


def test_it_works_where_gradients_are_off_and_in_half_precision() -> None:
    with torch.no_grad():
        tensors = Walk(clip_of("class token", precision=torch.bfloat16), 2)(torch.from_numpy(image()))
        (gradient,) = next(
            phrase_gradients(
                tensors.embedding, tensors.attention[:1], torch.ones_like(tensors.embedding)[None]
            )
        )
    assert tensors.attention[0].dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.any()
