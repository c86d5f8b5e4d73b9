"""Presence: its statistics and its probability by hand, its file, and that it does not depend on neighbours."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.explain.presence import FEATURES, RANK, ImageStatistics, Presence, features_of
from stages.explainers.dense.maskclip import MaskClip, MaskClipConfig
from tests.contracts.test_explainers import PHRASES, explainer_of, pixels


def unit(rng: Any, *shape: int) -> Any:
    values = rng.normal(size=shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def presence_of(embeddings: Any, bias: float = 0.0, **weight: float) -> Presence:
    return Presence(
        images=ImageStatistics.of(embeddings),
        bias=bias,
        weight=weight,
        mean=dict.fromkeys(weight, 0.0),
        scale=dict.fromkeys(weight, 2.0),
    )


@pytest.mark.parametrize("width", [RANK // 2, RANK + 40])
def test_statistics_are_those_of_the_cosines_with_the_images(width: int) -> None:
    """Also where the covariance has more directions than are kept: the last ones are alike here."""
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 500, width), unit(rng, 20, width)
    images = unit(rng, 1, width) * 0.6 + images * 0.4
    statistics = ImageStatistics.of(images)
    cosines = texts @ images.T
    for text, expected in zip(texts, cosines, strict=True):
        usual, spread = statistics.usual_and_spread(text)
        assert usual == pytest.approx(expected.mean(), abs=2e-3)
        assert spread == pytest.approx(expected.std(), rel=0.06)


def test_the_distance_of_other_images() -> None:
    """1 for the images of the fit, 1 + directions / images for others of their kind, more for others."""
    rng = np.random.default_rng(0)
    spread = np.linspace(1.0, 0.1, 24, dtype=np.float32)
    fitted, others = ((spread * rng.normal(size=(count, 24))).astype(np.float32) for count in (400, 4000))
    images = ImageStatistics.of(fitted)
    assert images.distance(fitted) == pytest.approx(1, abs=0.01)
    assert images.distance(others) == pytest.approx(1 + 24 / 400, abs=0.03)
    assert images.distance(others[:, ::-1]) > 5
    few = ImageStatistics.of(fitted[:3])
    assert np.isfinite(few.distance(others)), "directions in which three images do not differ"


def test_the_probability_by_hand() -> None:
    rng = np.random.default_rng(1)
    images, text = unit(rng, 50, 8), unit(rng, 8)
    presence = presence_of(images, bias=0.5, deviation=3.0, local=-1.0)
    usual, spread = presence.images.usual_and_spread(text)
    total = 0.5 + 3.0 * ((0.3 - usual) / spread) / 2.0 - 1.0 * 0.4 / 2.0
    assert presence.probability("dog", text, 0.3, 0.4) == pytest.approx(1 / (1 + np.exp(-total)), abs=1e-6)
    assert presence.probability("dog", text, 1e9, 0.4) == 1.0


def test_plain_values_give_the_same_presence() -> None:
    rng = np.random.default_rng(2)
    presence = presence_of(unit(rng, 300, RANK + 6), bias=-0.2, **dict.fromkeys(FEATURES, 0.3))
    again = Presence.from_plain(json.loads(json.dumps(presence.plain())))
    text = unit(rng, RANK + 6)
    assert again.probability("a", text, 0.2, 0.3) == presence.probability("a", text, 0.2, 0.3)
    assert again.plain() == presence.plain()


@pytest.mark.parametrize(
    "change",
    [
        {"weight": {"odd": 1.0}},
        {"scale": dict.fromkeys(FEATURES, 0.0)},
        {"bias": float("nan")},
        {"images": {"mean": "AA==", "directions": "", "rest": 0.0}},
        {"images": {"mean": "", "directions": "", "rest": -1.0}},
    ],
)
def test_damaged_values_are_refused(change: dict[str, Any]) -> None:
    presence = presence_of(unit(np.random.default_rng(3), 9, 4), **dict.fromkeys(FEATURES, 1.0))
    with pytest.raises((KeyError, TypeError, ValueError)):
        Presence.from_plain({**presence.plain(), **change})


@pytest.mark.parametrize("tower", ["class token", "timm, positions"])
def test_every_way_tells_presence_without_neighbours(tower: Any) -> None:
    """The same bits whatever is asked for beside it, and in whatever place of the batch."""
    explainer = explainer_of("grad_eclip", tower)
    signals = explainer.signals(pixels(tower), [each or ["x"] for each in PHRASES])
    assert all((np.abs(each.local) <= 1.001).all() for each in signals)
    images = np.stack([each.embedding for each in signals])
    explainer.presence = presence_of(images, deviation=0.5, local=2.0)
    table = features_of(explainer.presence.images, signals)
    assert table.shape == (sum(len(each.cosines) for each in signals), len(FEATURES))
    together = explainer.explain(pixels(tower), PHRASES)
    turned = explainer.explain(pixels(tower)[::-1].copy(), PHRASES[::-1])[::-1]
    assert [[each.presence for each in own] for own in together] == [[each.presence for each in own] for own in turned]
    assert len({each.presence for own in together for each in own}) > 1
    explainer.presence = None
    plain = explainer.explain(pixels(tower), PHRASES)
    for mine, theirs in zip(plain, together, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.presence is None
            np.testing.assert_array_equal(a.values, b.values)
            assert replace(a, presence=b.presence, values=b.values) == b


def test_the_closest_patch_is_maskclips() -> None:
    """Of the map without the residual, whose lowest value is 0: the highest less the lowest cosine."""
    explainer = explainer_of("grad_eclip", "class token")
    values = MaskClip(MaskClipConfig(residual=False), explainer.model)
    texts = [each or ["x"] for each in PHRASES]
    mine = explainer.signals(pixels("class token"), texts)
    theirs = values.signals(pixels("class token"), texts)
    assert isinstance(explainer, GradEclip)
    assert explainer.config == GradEclipConfig(**explainer.config.model_dump())
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.local, b.local, atol=1e-5)
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
