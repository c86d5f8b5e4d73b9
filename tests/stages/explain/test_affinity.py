"""Affinity: the formulas against naive numpy, on every kind of tower, and without any effect where it is off."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.explain.maps import ALIKE, share_heat, token_graph
from tests.closeness import assert_close
from tests.factories import TOWERS
from tests.messages import expect_error
from tests.stages.explain.models import clip_of, make_explainer

PHRASES = [["red car", "dog", "two green fish"], ["dog"]]
Floats = NDArray[np.float64]

PLACES = [
    *(("grad_eclip", tower) for tower in ("class token", "SigLIP")),
    *(("maskclip", tower) for tower in ("class token", "EVA02", "ConvNeXt")),
]


def pixels(tower: str) -> NDArray[np.uint8]:
    """Two images of 3 x 4 cells, each of two noisy halves, so that some tokens are alike and others are not."""
    stride = TOWERS[tower][1].patch_px
    rgb = np.random.default_rng(3).integers(0, 60, (2, 3 * stride, 4 * stride, 3), dtype=np.uint8)
    rgb[0, :, 2 * stride :] += 180
    rgb[1, stride:, :, 1:] += 150
    return rgb


def by_propagation(heat: Floats, tokens: Floats, reach: float) -> Floats:
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
    return np.linalg.solve(np.eye(n) - reach * scale[:, None] * graph * scale, heat.T).T


@pytest.mark.parametrize(("kind", "tower"), PLACES)
def test_the_formula(kind: str, tower: str) -> None:
    plain = make_explainer(kind, tower)
    shared = make_explainer(kind, tower, affinity="propagation")
    rgb = pixels(tower)
    tokens = shared.maps(torch.from_numpy(rgb)).tokens.double().numpy()
    befores = plain.explain(rgb, PHRASES)
    afters = shared.explain(rgb, PHRASES)
    for before, after, image_tokens in zip(befores, afters, tokens, strict=True):
        heat = np.stack([heat_map.values.ravel() for heat_map in before]).astype(np.float64)
        expected = by_propagation(heat, image_tokens, shared.config.affinity_reach)
        actual = np.stack([heat_map.values.ravel() for heat_map in after])
        assert np.abs(expected - heat).max() > 0.01 * heat.max(), "it does something"
        assert_close(actual, expected, 1e-4)
        assert [heat_map.similarity for heat_map in before] == [heat_map.similarity for heat_map in after]


@pytest.mark.parametrize("kind", ["grad_eclip", "maskclip", "rollout", "m2ib"])
def test_the_tokens_are_those_before_the_block_at_the_depth(kind: str) -> None:
    tower: Any = clip_of("class token").tower
    rgb = torch.from_numpy(pixels("class token"))
    expected = tower.blocks[0](tower.embed(rgb))[:, 1:]
    explainer = make_explainer(kind, affinity="propagation", affinity_depth=0.5)
    assert_close(explainer.maps(rgb).tokens, expected)


def test_a_block_that_is_explained_is_refused() -> None:
    with expect_error(ConfigError, key="explain.affinity_depth"):
        make_explainer("grad_eclip", blocks=2, affinity="propagation", affinity_depth=1)


def test_tokens_that_are_all_alike_keep_the_heat_and_broken_ones_give_none_that_looks_right() -> None:
    values = torch.rand(1, 8, 12)
    tokens = torch.ones(1, 12, 5)
    assert_close(share_heat(values, tokens, (3, 4), 0.8), values)
    assert torch.isfinite(share_heat(F.pad(values[:, :4], (0, 0, 0, 4)), tokens, (3, 4), 0.8)).all()
    tokens[0, 3, 2] = torch.nan
    assert share_heat(values, tokens, (3, 4), 0.8).isnan().all()


def test_all_phrases_of_an_image_are_solved_exactly() -> None:
    """Ten steps of an iteration are a thousandth off where many tokens are alike."""
    tokens = torch.randn(2, 576, 4, generator=torch.Generator().manual_seed(1))
    values = torch.rand(2, 20, 576, generator=torch.Generator().manual_seed(2))
    system = torch.eye(576, dtype=torch.float64) - 0.95 * token_graph(tokens, (24, 24)).double()
    expected = torch.linalg.solve(system, values.double().mT).mT.float()
    assert_close(share_heat(values, tokens, (24, 24), 0.95), expected, 1e-4)
