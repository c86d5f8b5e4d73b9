"""Affinity: the formulas against naive numpy, on every kind of tower, and without any effect where it is off."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stages.contract.errors import ConfigError
from stages.explain.affinity import ALIKE, share_heat, solve_propagation, token_graph
from stages.explain.base import Explainer
from tests.factories import TOWERS
from tests.messages import expect_error
from tests.stages.explain.models import clip_of, make_explainer

PHRASES = [["red car", "dog", "two green fish"], ["dog"]]
Floats = NDArray[np.float64]

PLACES = [
    *(("grad_eclip", tower) for tower in ("class token", "timm, class token", "SigLIP")),
    *(("maskclip", tower) for tower in ("class token", "EVA02", "ConvNeXt")),
    *(("rollout", "class token"), ("cam", "ConvNeXt")),
]
everywhere = pytest.mark.parametrize(("kind", "tower"), PLACES)


def explainer_of(kind: str, tower: str, **settings: Any) -> Explainer[Any]:
    """With blocks to spare before those that are explained."""
    of_blocks = {"blocks": 2} if (kind, tower) == ("grad_eclip", "class token") else {}
    return make_explainer(kind, tower, **of_blocks, **settings)


def pixels(tower: str) -> NDArray[np.uint8]:
    """Two images of 3 x 4 cells, each of two noisy halves, so that some tokens are alike and others are not."""
    stride = TOWERS[tower][1].patch_px
    rgb = np.random.default_rng(3).integers(0, 60, (2, 3 * stride, 4 * stride, 3), dtype=np.uint8)
    rgb[0, :, 2 * stride :] += 180
    rgb[1, stride:, :, 1:] += 150
    return rgb


def by_propagation(explainer: Explainer[Any], heat: Floats, tokens: Floats) -> Floats:
    """The linear equations solved at once, with a loop over pairs of tokens."""
    x = tokens - tokens.mean(axis=0)
    n = len(x)
    graph = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            cosine = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
            distance = np.hypot(i // 4 - j // 4, i % 4 - j % 4)
            graph[i, j] = max(cosine - ALIKE, 0) * np.exp(-distance) if i != j else 0
    scale = 1 / np.sqrt(np.maximum(graph.sum(axis=0), 1e-30))
    system = np.eye(n) - explainer.config.affinity_reach * scale[:, None] * graph * scale
    return np.linalg.solve(system, heat.T).T


@everywhere
def test_the_formula(kind: str, tower: str) -> None:
    plain = explainer_of(kind, tower)
    shared = explainer_of(kind, tower, affinity="propagation")
    rgb = pixels(tower)
    tokens = shared.maps(torch.from_numpy(rgb)).tokens
    assert tokens is not None
    befores = plain.explain(rgb, PHRASES)
    afters = shared.explain(rgb, PHRASES)
    for before, after, image_tokens in zip(befores, afters, tokens.double().numpy(), strict=True):
        heat = np.stack([heat_map.values.ravel() for heat_map in before]).astype(np.float64)
        expected = by_propagation(shared, heat, image_tokens)
        actual = np.stack([heat_map.values.ravel() for heat_map in after])
        assert np.abs(expected - heat).max() > 0.01 * heat.max(), "it does something"
        assert np.allclose(actual, expected, atol=1e-4 * expected.max())
        assert [heat_map.similarity for heat_map in before] == [heat_map.similarity for heat_map in after]


def test_the_tokens_are_those_before_the_block_at_the_depth() -> None:
    tower = clip_of("class token").tower
    rgb = pixels("class token")
    x = tower.blocks[0](tower.embed(torch.from_numpy(rgb)))  # type: ignore[attr-defined]
    for kind in ("grad_eclip", "maskclip", "rollout"):
        explainer = explainer_of(kind, "class token", affinity="propagation", affinity_depth=0.5)
        tokens = explainer.maps(torch.from_numpy(rgb)).tokens
        assert tokens is not None, kind
        assert torch.allclose(tokens, x[:, 1:], atol=1e-5), kind


def test_a_block_that_is_explained_is_refused() -> None:
    with expect_error(ConfigError):
        explainer_of("grad_eclip", "class token", affinity="propagation", affinity_depth=1)


def test_tokens_that_are_all_alike_or_all_different_keep_the_heat() -> None:
    values = torch.rand(1, 8, 12)
    assert torch.allclose(solve_propagation(values, torch.zeros(1, 12, 12), 0.8), values)
    same = torch.ones(1, 12, 5)
    assert torch.allclose(share_heat(values, same, (3, 4), 0.8), values)
    assert torch.isfinite(share_heat(F.pad(values[:, :4], (0, 0, 0, 4)), same, (3, 4), 0.8)).all()


def test_all_phrases_of_an_image_are_solved_exactly() -> None:
    """Ten steps of an iteration are a thousandth off where many tokens are alike."""
    tokens = torch.randn(2, 576, 4, generator=torch.Generator().manual_seed(1))
    values = torch.rand(2, 20, 576, generator=torch.Generator().manual_seed(2))
    graph = token_graph(tokens, (24, 24))
    system = torch.eye(576, dtype=torch.float64) - 0.95 * graph.double()
    expected = torch.linalg.solve(system, values.double().mT).mT.float()
    assert torch.allclose(solve_propagation(values, graph, 0.95), expected, rtol=1e-4)


def test_tokens_that_are_not_finite_give_no_heat_that_looks_right() -> None:
    tokens = torch.rand(1, 12, 5)
    tokens[0, 3, 2] = torch.nan
    assert solve_propagation(torch.rand(1, 8, 12), token_graph(tokens, (3, 4)), 0.8).isnan().all()
