"""Insertion and deletion: curves that can be computed by hand."""

import numpy as np
import open_clip
import pytest
import torch

from phrasebox.pipeline.evaluate.matching import draw_map
from phrasebox.pipeline.research.compare.faithfulness import (
    FILLINGS,
    SHARES,
    changed_pixels,
    filling_pixels,
    measure_curves,
    rank_pixels,
)
from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.model.load import from_open_clip
from tests.factories import SPEC, tiny_clip

RNG = np.random.default_rng(0)


def test_pixels_go_in_the_order_of_their_heat() -> None:
    heat = np.array([[0.1, 0.9], [0.5, 0.7]], np.float32)
    assert rank_pixels(heat).tolist() == [[3, 0], [2, 1]]


def test_equal_pixels_go_from_the_heat_outwards() -> None:
    heat = np.zeros((20, 20), np.float32)
    heat[4, 15] = 1
    places = rank_pixels(heat)
    assert sorted(places.ravel().tolist()) == list(range(400))
    far = np.hypot(*np.mgrid[-4:16, -15:5])
    assert np.all(far[places < 9] < 2), "the eight neighbours of the peak come next"
    assert far[places < 30].max() < far[places >= 60].min() + 2


def test_the_hottest_pixels_change_first() -> None:
    heat = np.random.default_rng(0).random((10, 10), np.float32)
    changes = changed_pixels(rank_pixels(heat))
    assert changes.mean(axis=(1, 2)).tolist() == pytest.approx(list(SHARES))
    assert heat[changes[2]].min() > heat[~changes[2]].max()


@pytest.mark.parametrize("bias", [None, -2.0])
def test_curves_are_of_the_probability_that_the_model_itself_gives(bias: float | None) -> None:
    """As open_clip computes it: its own logits for the pasted images, through its own scale and bias."""
    module = tiny_clip()
    module.logit_scale.data.fill_(3.0)
    if bias is not None:
        module.logit_bias = torch.nn.Parameter(torch.tensor(bias))
    model = from_open_clip(module, spec=SPEC)
    rgb = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    texts = ["a cat", "two dogs", "a red car"]
    heat = HeatMap(text="a cat", values=RNG.random((4, 4), np.float32), similarity=0.0)
    areas = measure_curves(model, rgb, {"own": heat}, texts)["own"]
    changes = changed_pixels(rank_pixels(draw_map(heat, (32, 32))))
    for name, baseline in FILLINGS.items():
        visible = changes if name == "insertion_rise" else ~changes
        pasted = np.where(visible[..., None], rgb, filling_pixels(model, rgb, baseline)).astype(np.float32)
        with torch.no_grad():
            logits, _ = module.get_logits(
                model.tower.normalise(torch.from_numpy(pasted)), open_clip.tokenize(texts)
            )
        scores = (logits.softmax(dim=1) if bias is None else logits.sigmoid())[:, 0]
        assert 0.02 < scores.max() < 0.98
        assert areas[name] == pytest.approx(np.trapezoid(scores.double(), SHARES), abs=1e-4)


def test_what_stands_where_nothing_is_seen() -> None:
    model = from_open_clip(tiny_clip(), spec=SPEC)
    rgb = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    mean = filling_pixels(model, rgb, "mean")
    assert mean.shape == rgb.shape
    assert mean[0, 0].tolist() == pytest.approx([255 * value for value in SPEC.mean], rel=1e-5)
    blur = filling_pixels(model, rgb, "blur")
    assert blur.mean() == pytest.approx(rgb.mean(), abs=2)
    assert blur.std() < rgb.std() / 2
