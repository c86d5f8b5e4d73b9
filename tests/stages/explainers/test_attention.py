"""Explainers that read attention, against open_clip's own forward pass and autograd in float64."""

import functools
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.explainers.attention import flows_to_patches, last_attention
from tests.closeness import assert_close
from tests.stages.explain.models import clip_of, image, make_explainer, module_of
from tests.stages.explainers.captured import Captured, Floats, assert_formula, capture, cells_of

pytestmark = pytest.mark.usefixtures("float64")
NAMES = ["class token", "timm, class token", "ResNet", "EVA02", "SigLIP"]


@pytest.mark.parametrize("name", NAMES)
def test_raw_attention_is_the_first_row_of_the_last_attention(name: str) -> None:
    clip = clip_of(name)
    side = round(cells_of(name) ** 0.5)
    rgb = torch.from_numpy(image(name, side, side))
    captured = capture(module_of(name), clip.tower.normalise(rgb)[0])
    expected = captured.attention[-1][0, :, 0].mean(dim=0).detach()[-side * side :]
    assert expected.max() > 1.2 * expected.min(), "far from uniform"
    assert_close(last_attention(clip, rgb), expected[None])


def test_rollout() -> None:
    def expect(captured: Captured, text: Tensor) -> Floats:
        product = np.eye(17)
        for attention in captured.attention:
            product = (np.eye(17) + attention[0].detach().numpy().mean(axis=0)) / 2 @ product
        return product[0]

    assert_formula(make_explainer("rollout"), expect)


def test_attention_flow_is_that_of_another_library_on_floats() -> None:
    explainer = make_explainer("attention_flow")
    pixels = explainer.model.tower.normalise(torch.from_numpy(image()))[0]

    @functools.cache
    def flows() -> Floats:
        graph = nx.DiGraph()
        for layer, attention in enumerate(capture(module_of("class token"), pixels).attention):
            capacities = (np.eye(17) + attention[0].detach().numpy().mean(axis=0)) / 2
            for row, column in np.ndindex(17, 17):
                graph.add_edge((layer + 1, row), (layer, column), capacity=capacities[row, column])
        return np.array([0, *(nx.maximum_flow_value(graph, (4, 0), (0, patch)) for patch in range(1, 17))])

    assert_formula(explainer, lambda captured, text: flows())


def test_flow_takes_what_the_narrowest_edges_hold_and_counts_shared_ones_once() -> None:
    """Two blocks: the class token sees patch 1 by a half, and itself, which saw both patches.

    Of 1 that leaves the class token, 3/4 stays on it and 1/4 goes to patch 1, which stays itself with 1. Before the
    first block the class token has 1/4 of either patch, so that patch 1 gets 1/4 + 1/4 and patch 2 gets 1/4.
    """
    first = np.array([[0.0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]])
    last = np.array([[0.5, 0.5, 0.0], [0, 1, 0], [0, 0, 1]])
    assert flows_to_patches([first, last]).tolist() == pytest.approx([0.5, 0.25])


def test_the_flow_through_several_blocks_ends_where_the_first_one_looks() -> None:
    attention = np.random.default_rng(0).dirichlet(np.full(17, 0.3), size=(6, 17))
    looks = attention[0].sum(axis=0)[1:]
    assert np.any(looks > 1)
    assert np.any(looks < 1)
    assert_close(flows_to_patches(list(attention)), np.minimum(1, (1 + looks) / 2), 1e-4)


def test_attention_that_is_not_finite_has_no_flow_and_gives_no_warning() -> None:
    sound = np.full((3, 3), 1 / 3)
    lost = np.where(np.eye(3) > 0, np.nan, sound)
    assert np.isnan(flows_to_patches([sound, lost])).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "EVA02"])
def test_attention_gradient(name: str) -> None:
    def expect(captured: Captured, text: Tensor) -> Floats:
        attention = captured.attention[-1]
        (gradient,) = captured.gradients(text, [attention])
        return np.maximum((gradient * attention)[0, :, 0].detach().numpy(), 0).mean(axis=0)

    assert_formula(make_explainer("attention_gradient", name), expect, tower=name)


@pytest.mark.parametrize("scale", [1 / 0.07, 900.0])
def test_game_is_the_papers_recursion_with_whole_matrices(scale: float) -> None:
    def expect(captured: Captured, text: Tensor) -> Floats:
        relevance = np.eye(17)
        gradients = captured.gradients(text, captured.attention)
        for weights, gradient in zip(captured.attention, gradients, strict=True):
            product = scale * (gradient * weights)[0].detach().numpy()
            relevance = relevance + np.maximum(product, 0).mean(axis=0) @ relevance
        return relevance[0]

    assert_formula(make_explainer("game", replace(clip_of(), logit_scale=scale)), expect)


def test_legrad_on_blocks() -> None:
    def expect(captured: Captured, text: Tensor) -> Floats:
        total = np.zeros(17)
        for tokens, attention in zip(captured.outputs, captured.attention[-2:], strict=True):
            meaning = captured.visual.ln_post(tokens[0].mean(dim=0)) @ captured.visual.proj
            cosine = F.normalize(meaning, dim=0) @ text
            (gradient,) = torch.autograd.grad(cosine, attention, retain_graph=True)
            total += np.maximum(gradient[0].numpy(), 0).mean(axis=(0, 1))
        return total

    assert_formula(make_explainer("legrad"), expect, "transformer.resblocks.2", "transformer.resblocks.3")


@pytest.mark.parametrize("name", ["ResNet", "SigLIP"])
def test_legrad_on_pools(name: str) -> None:
    explainer = make_explainer("legrad", name)

    def heat(captured: Captured, text: Tensor) -> Floats:
        (gradient,) = captured.gradients(text, captured.attention[-1:])
        return np.maximum(gradient[0, :, 0, -cells_of(name) :].numpy(), 0).mean(axis=0)

    def expect(captured: Captured, text: Tensor) -> Floats:
        empty = heat(captured, explainer.texts(["a photo of a"])[0])
        is_normal = (empty - empty.min()) / np.ptp(empty) <= 0.8
        assert not is_normal.all()
        return heat(captured, text) * is_normal

    assert_formula(explainer, expect, tower=name)
