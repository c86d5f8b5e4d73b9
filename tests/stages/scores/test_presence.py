"""Presence: its statistics and its probability by hand, its file, and that it does not depend on neighbours."""

import json
from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.explain.base import Explainer
from phrasebox.stages.explain.grad_eclip import GradEclip
from phrasebox.stages.scores.presence import (
    FEATURES,
    RANK,
    ClipFeatures,
    ImageSignals,
    ImageStatistics,
    Presence,
)
from tests.closeness import assert_close
from tests.stages.explain.models import clip_of, image, make_explainer

PHRASES = [["red car", "dog", "two green fish"], [], ["dog"]]


def pixels(tower: str) -> np.ndarray:
    return image(tower, 4, 4, count=len(PHRASES), seed=5)


def unit(rng: Any, *shape: int) -> Any:
    values = rng.normal(size=shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def presence_of(embeddings: Any, bias: float = 0.0, **weight: float) -> Presence:
    zeros = dict.fromkeys(weight, 0.0)
    twos = dict.fromkeys(weight, 2.0)
    return Presence(images=ImageStatistics.of(embeddings), bias=bias, weight=weight, mean=zeros, scale=twos)


@pytest.mark.parametrize("width", [RANK // 2, RANK + 40])
def test_statistics_are_those_of_the_cosines_with_the_images(width: int) -> None:
    """Also where the covariance has more directions than are kept: the last ones are alike here."""
    rng = np.random.default_rng(0)
    images = unit(rng, 500, width)
    texts = unit(rng, 20, width)
    images = unit(rng, 1, width) * 0.6 + images * 0.4
    statistics = ImageStatistics.of(images)
    cosines = texts @ images.T
    features = statistics.features(texts, cosines[:, 0], cosines[:, 1])
    assert features[:, 1] == pytest.approx(cosines.mean(axis=1), abs=2e-3)
    assert features[:, 2] == pytest.approx(cosines.std(axis=1), rel=0.06)


def test_the_distance_of_other_images() -> None:
    """1 for the images of the fit, 1 + directions / images for others of their kind, more for others."""
    rng = np.random.default_rng(0)
    spread = np.linspace(1.0, 0.1, 24, dtype=np.float32)
    sample, population = (
        (spread * rng.normal(size=(count, 24))).astype(np.float32) for count in (400, 4000)
    )
    images = ImageStatistics.of(sample)
    assert images.distance(sample) == pytest.approx(1, abs=0.01)
    assert images.distance(population) == pytest.approx(1 + 24 / 400, abs=0.03)
    assert images.distance(population[:, ::-1]) > 5
    few = ImageStatistics.of(sample[:3])
    assert (images.count, few.count) == (len(sample), 3)
    assert np.isfinite(few.distance(population)), "directions in which three images do not differ"


def test_the_probability_by_hand() -> None:
    rng = np.random.default_rng(1)
    images = unit(rng, 50, 8)
    text = unit(rng, 8)
    presence = presence_of(images, bias=0.5, deviation=3.0, local=-1.0)
    texts = np.stack([text] * 3)
    cosines = np.array([0.3, 1e9, np.nan])
    local = np.full(3, 0.4)
    mean = presence.images.mean
    directions = presence.images.directions
    usual = text @ mean
    spread = np.linalg.norm(directions @ text)
    total = 0.5 + 3.0 * ((0.3 - usual) / spread) / 2.0 - 1.0 * 0.4 / 2.0
    probabilities = presence.probabilities(texts, cosines, local)
    assert probabilities[:2] == pytest.approx([1 / (1 + np.exp(-total)), 1], abs=1e-5)
    assert probabilities[2] is None, "nothing is known of it"


def test_plain_values_give_the_same_presence() -> None:
    rng = np.random.default_rng(2)
    presence = presence_of(unit(rng, 300, RANK + 6), bias=-0.2, **dict.fromkeys(FEATURES, 0.3))
    again = Presence(**json.loads(presence.model_dump_json(exclude_none=True)))
    given = unit(rng, 1, RANK + 6), np.array([0.2]), np.array([0.3])
    assert again.probabilities(*given) == presence.probabilities(*given)
    assert again.model_dump() == presence.model_dump()


def test_damaged_values_are_refused() -> None:
    presence = presence_of(unit(np.random.default_rng(3), 9, 4), **dict.fromkeys(FEATURES, 1.0))
    for change in (
        {"weight": {"odd": 1.0}},
        {"absent_share": 1.0},
        {"images": {"mean": "AA==", "directions": "", "rest": 0.0, "count": 2}},
    ):
        with pytest.raises(ValidationError):
            Presence(**{**presence.model_dump(), **change})


def signals_of(
    explainer: Explainer[Any], rgb: NDArray[np.uint8], texts: list[list[str]], **others: list[list[str]]
) -> list[ImageSignals]:
    return explainer.compare(list(rgb), texts, **others, with_signals=True).matches.signals()


def judged_maps(
    explainer: Explainer[Any], rgb: NDArray[np.uint8], texts: list[list[str]], presence: Presence
) -> list[list[HeatMap]]:
    comparison = explainer.compare(list(rgb), texts, with_signals=True)
    return explainer.launch(comparison, texts).wait(comparison.matches.wait(presence))


@pytest.mark.parametrize("tower", ["class token", "timm, positions"])
def test_presence_does_not_depend_on_neighbours(tower: Any) -> None:
    """Whatever else is asked for, and whatever the place in the batch."""
    explainer = GradEclip(GradEclip.config_type(), clip_of(tower))
    signals = signals_of(explainer, pixels(tower), [texts or ["x"] for texts in PHRASES])
    assert all((np.abs(image.phrases.local) <= 1.001).all() for image in signals)
    images = np.stack([image.embedding for image in signals])
    presence = presence_of(images, deviation=0.5, local=2.0)
    table = ClipFeatures.of(signals).values
    assert table.shape == (sum(len(image.phrases.cosines) for image in signals), len(FEATURES))
    together = judged_maps(explainer, pixels(tower), PHRASES, presence)
    turned = judged_maps(explainer, pixels(tower)[::-1], PHRASES[::-1], presence)[::-1]
    presences = [heat_map.presence for heat_map in chain(*together)]
    assert [heat_map.presence for heat_map in chain(*turned)] == pytest.approx(presences, abs=1e-4)
    assert len(set(presences)) > 1
    plain = explainer.explain(pixels(tower), PHRASES)
    for unjudged, judged in zip(chain(*plain), chain(*together), strict=True):
        assert unjudged.presence is None
        np.testing.assert_array_equal(unjudged.values, judged.values)
        assert unjudged.similarity == judged.similarity


def test_the_closest_patch_is_maskclips() -> None:
    rgb = pixels("class token")
    texts = [phrases or ["x"] for phrases in PHRASES]
    for mine, theirs in zip(
        *(signals_of(make_explainer(kind), rgb, texts) for kind in ("grad_eclip", "maskclip")), strict=True
    ):
        assert_close(mine.phrases.local, theirs.phrases.local)
        assert_close(mine.embedding, theirs.embedding)


def test_the_signals_of_phrases_of_others_and_of_captions_are_told_apart() -> None:
    """Those of one kind are the same whatever other texts an image is compared with."""
    rgb = pixels("class token")[:2]
    explainer = make_explainer("grad_eclip")
    phrases = [["red car", "dog"], ["dog"]]
    foreign = [["old boat"], ["green tree", "cow", "two cats"]]
    captions = [["a red car and a dog"], ["a dog", "an old dog"]]
    signals = signals_of(explainer, rgb, phrases, foreign=foreign, captions=captions)
    for kind, texts in (("phrases", phrases), ("foreign", foreign), ("captions", captions)):
        for together, alone in zip(signals, signals_of(explainer, rgb, texts), strict=True):
            for name in ("embeddings", "cosines", "local"):
                assert_close(getattr(getattr(together, kind), name), getattr(alone.phrases, name))
    assert [part.is_foreign.tolist() for part in signals] == [
        [False, False, True],
        [False, True, True, True],
    ]
    features = ClipFeatures.of(signals)
    assert features.values[:, 0].tolist() == pytest.approx(
        [*chain(*((*part.phrases.cosines, *part.foreign.cosines) for part in signals))]
    )
    chosen = features.where(np.array([False, False, True, False, True, True, True]))
    assert chosen.images is features.images
    assert chosen.values.tolist() == features.values[[2, 4, 5, 6]].tolist()
