"""GAME: the paper's recursion with whole matrices, on what autograd says of open_clip's own forward pass."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from stages.contract.errors import ConfigError
from stages.explainers.attention.game import Game, GameConfig
from stages.shared.model.load import from_open_clip
from tests.factories import TOWERS
from tests.stages.explainers.attention.captured import capture

PHRASES = ["red car", "dog"]
tokenizer = open_clip.get_tokenizer("ViT-B-32")


@pytest.mark.parametrize(
    ("settings", "blocks", "scale"),
    [({}, 4, 100.0), ({"blocks": 1}, 1, 100.0), ({"blocks": 3, "scale": 4000.0}, 3, 4000.0)],
)
def test_the_recursion(settings: dict[str, object], blocks: int, scale: float) -> None:
    make, spec = TOWERS["class token"]
    model = make()
    explainer = Game(GameConfig(**settings), from_open_clip(model, tokenizer, spec))  # type: ignore[arg-type]
    rgb = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    captured = capture(model, explainer.model.tower.normalised(torch.from_numpy(rgb))[0])
    for text, found in zip(PHRASES, explainer.explain(rgb, [PHRASES])[0], strict=True):
        attention = captured.attention[-blocks:]
        gradients = captured.gradients(explainer.texts([text])[0], attention)
        relevance = np.eye(17)
        for weights, gradient in zip(attention, gradients, strict=True):
            product = scale * gradient[0].numpy() * weights[0].detach().numpy()
            step = np.maximum(product, 0).mean(axis=0)
            relevance = relevance + step @ relevance
        wanted = relevance[0, 1:].reshape(4, 4)
        assert np.allclose(found.values, wanted, atol=1e-4 * wanted.max())


def test_paths_through_two_blocks_count_more_with_a_larger_scale() -> None:
    make, spec = TOWERS["class token"]
    clip = from_open_clip(make(), tokenizer, spec)
    rgb = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    one, ten = (Game(GameConfig(scale=scale), clip).explain(rgb, [["dog"]])[0][0].values for scale in (100, 1000))
    assert (ten > 10.001 * one).any()
    assert (ten >= 9.999 * one).all()


def test_more_blocks_than_there_are_are_refused() -> None:
    make, spec = TOWERS["class token"]
    with pytest.raises(ConfigError, match=r"explain\.blocks: .* has 4 blocks, not 5"):
        Game(GameConfig(blocks=5), from_open_clip(make(), tokenizer, spec))
