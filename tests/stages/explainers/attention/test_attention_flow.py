"""Attention flow, against networkx's maximum flow and minimum cut in the whole graph, in floating point."""

from __future__ import annotations

import networkx as nx
import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from stages.explainers.attention.attention_flow import AttentionFlow, AttentionFlowConfig, flows
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, tiny_clip
from tests.stages.explainers.attention.captured import capture

Floats = NDArray[np.float64]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


def whole_graph(mixed: Floats) -> nx.DiGraph:
    """Nodes are (blocks before it, token)."""
    graph = nx.DiGraph()
    for number, block in enumerate(mixed):
        for j, row in enumerate(block):
            for k, capacity in enumerate(row):
                graph.add_edge((number + 1, j), (number, k), capacity=float(capacity))
    return graph


def mixed_at_random(layers: int, tokens: int, sharpness: float, seed: int = 0) -> Floats:
    logits = sharpness * np.random.default_rng(seed).standard_normal((layers, tokens, tokens))
    attention = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    mixed: Floats = 0.5 * attention + 0.5 * np.eye(tokens)
    return mixed


@pytest.mark.parametrize(
    ("layers", "tokens", "sharpness"), [(1, 5, 1.0), (2, 6, 1.0), (3, 6, 2.0), (5, 7, 0.1), (5, 7, 4.0), (6, 6, 8.0)]
)
def test_maximum_flow_is_minimum_cut(layers: int, tokens: int, sharpness: float) -> None:
    mixed = mixed_at_random(layers, tokens, sharpness)
    graph, found = whole_graph(mixed), flows(mixed)
    for token in range(tokens):
        value, (from_side, to_side) = nx.minimum_cut(graph, (layers, 0), (0, token))
        crossing = sum(
            mixed[number - 1, j, k]
            for number, j in from_side
            for k in range(tokens)
            if number > 0 and (number - 1, k) in to_side
        )
        assert found[token] == pytest.approx(value, abs=1e-6)
        assert found[token] == pytest.approx(crossing, abs=1e-6)


def test_the_cuts_that_are_looked_at_first_are_not_always_the_tightest() -> None:
    mixed = mixed_at_random(5, 7, 4.0)
    assert (flows(mixed) < np.minimum(1, mixed[0].sum(axis=0)) - 0.01).any()


def test_one_block_is_its_row() -> None:
    mixed = mixed_at_random(1, 5, 1.0)
    assert np.allclose(flows(mixed), mixed[0, 0], atol=1e-8)


def test_tokens_that_keep_to_themselves_get_nothing() -> None:
    assert flows(np.stack([np.eye(4)] * 4)).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("residual", [0.5, 0.2])
def test_it_runs_through_the_attention_of_open_clip(residual: float) -> None:
    model = tiny_clip(layers=2)
    explainer = AttentionFlow(AttentionFlowConfig(residual=residual), from_open_clip(model, tokenizer, SPEC))
    rgb = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    captured = capture(model, explainer.model.tower.normalised(torch.from_numpy(rgb))[0])
    attention = np.stack([weights[0].detach().mean(dim=0).numpy() for weights in captured.attention])
    graph = whole_graph((1 - residual) * attention + residual * np.eye(17))
    wanted = [nx.maximum_flow_value(graph, (2, 0), (0, 1 + patch)) for patch in range(16)]
    for found in explainer.explain(rgb, [["red car", "dog"]])[0]:
        assert np.allclose(found.values.ravel(), wanted, atol=1e-5)
