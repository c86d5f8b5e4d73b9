"""The model's side of the curves, and one trunk for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluate.compare.cost import timing
from pipeline.evaluate.compare.curves import hidden_pixels, image_embeddings, masked_cosines, text_embeddings
from pipeline.evaluate.compare.remembered import RememberedTrunk, remembering
from stages.explainers.cams import Cam, CamConfig
from stages.explainers.dense import MaskClip, MaskClipConfig
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, TOWERS, tiny_clip

RNG = np.random.default_rng(0)


def test_half_an_image_means_what_the_pasted_image_means() -> None:
    model = from_open_clip(tiny_clip(), spec=SPEC)
    rgb = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    hidden = hidden_pixels(model, rgb, "random", 5)
    masks = RNG.random((3, 32, 32)) < 0.5
    texts = text_embeddings(model, ["a cat", "two dogs"])
    pasted = np.where(masks[..., None], rgb, hidden).astype(np.uint8)
    wanted = image_embeddings(model, pasted) @ texts.T
    np.testing.assert_allclose(masked_cosines(model, rgb, masks, hidden, texts), wanted, atol=1e-5)


def test_what_stands_where_nothing_is_seen() -> None:
    model = from_open_clip(tiny_clip(), spec=SPEC)
    rgb = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    mean = hidden_pixels(model, rgb, "mean", 0)
    assert mean[0, 0].tolist() == pytest.approx([255 * value for value in SPEC.mean], rel=1e-5)
    assert not hidden_pixels(model, rgb, "black", 0).any()
    random = hidden_pixels(model, rgb, "random", 0)
    assert np.array_equal(random, hidden_pixels(model, rgb, "random", 0))
    assert not np.array_equal(random, hidden_pixels(model, rgb, "random", 1))
    assert random.shape == rgb.shape
    assert random.mean() == pytest.approx(127.5, abs=5)
    blur = hidden_pixels(model, rgb, "blur", 0)
    assert blur.mean() == pytest.approx(rgb.mean(), abs=2)
    assert blur.std() < rgb.std() / 2


@torch.no_grad()
def test_explainers_share_the_trunk_and_get_the_same_maps() -> None:
    make, spec = TOWERS["ConvNeXt"]
    plain = from_open_clip(make(), spec=spec)
    shared = remembering(plain)
    trunk = shared.tower.trunk  # type: ignore[attr-defined]  # an averaged tower
    assert isinstance(trunk, RememberedTrunk)
    calls: list[int] = []
    inner = trunk.trunk
    trunk.trunk = lambda pixels: (calls.append(len(pixels)), inner(pixels))[1]
    first, second = (RNG.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8) for _ in range(2))
    phrases = [["a cat"], ["a dog"]]
    for number, rgb in enumerate((first, second), start=1):
        for make_one, config in ((Cam, CamConfig()), (MaskClip, MaskClipConfig())):
            found = make_one(config, shared).explain(rgb, phrases)
            wanted = make_one(config, plain).explain(rgb, phrases)
            for a, b in zip(found, wanted, strict=True):
                assert a[0].values.tobytes() == b[0].values.tobytes()
        image_embeddings(shared, rgb)
        assert calls == [2] * number
    for _ in range(2):  # some explainers take the images one by one
        for rgb in second:
            image_embeddings(shared, rgb[None])
    assert calls == [2, 2, 1, 1]


def test_the_clock_measures_both() -> None:
    model = from_open_clip(tiny_clip(), spec=SPEC)
    rgb = RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = timing(MaskClip(MaskClipConfig(), model), rgb, [["a cat"] * 8] * 2)
    assert found.repeats == 3
    assert 0 < found.encode_s < 5
    assert 0 < found.explain_s < 5
