"""Embeddings of regions on every kind of tower, and that a region's own place is what they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluate.probe.config import ProbeConfig
from pipeline.evaluate.probe.embed import Embedded, Embedder, Picture, shares_of
from pipeline.evaluate.probe.questions import Questions
from stages.contract.masks import encode_mask
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import from_open_clip, load
from tests.factories import TOWERS

HALF = (0.0, 0.0, 0.5, 1.0)


def picture(rgb: np.ndarray, *boxes: tuple[float, float, float, float]) -> Picture:
    height, width = rgb.shape[:2]
    masks = []
    for x0, y0, x1, y1 in boxes:
        mask = np.zeros((height, width), np.bool_)
        mask[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = True
        masks.append(encode_mask(mask))
    named = ("x",) * len(boxes)
    asked = Questions(
        boxes_rel=np.array(boxes, np.float64).reshape(-1, 4),
        masks=tuple(masks),
        classes=named,
        described=named,
        candidates=np.arange(len(boxes)),
        phrases=(),
    )
    return Picture(rgb=rgb, full=rgb, asked=asked)


def embedder_of(tower: str, **settings: object) -> Embedder:
    make, spec = TOWERS[tower]
    return Embedder(from_open_clip(make(), spec=spec), ProbeConfig.model_validate(settings), batch_images=4)


@pytest.mark.parametrize("tower", TOWERS)
def test_every_kind_of_tower(tower: str) -> None:
    embedder = embedder_of(tower)
    side = embedder.model.input.size_px
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, side, side, 3), np.uint8)
    pictures = [picture(noise[0], HALF, (0, 0, 1, 1)), picture(noise[1]), picture(noise[1], (0.25, 0.5, 1, 1))]
    first, empty, third = embedder.pictures(pictures)
    for found, regions in ((first, 2), (empty, 0), (third, 1)):
        assert found.crop is not None
        for rows in (found.roi, found.mask, found.crop):
            assert rows.shape == (regions, embedder.model.embed_dim)
            assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(regions), abs=1e-5)
    assert first.crop is not None
    assert first.crop[1] == pytest.approx(first.image, abs=1e-4), "the crop of everything is the image"
    alone = embedder.pictures([pictures[2]])[0]
    for name in ("image", "roi", "mask", "crop"):
        assert getattr(alone, name) == pytest.approx(getattr(third, name), abs=1e-5), "whatever its neighbours are"


def test_without_crops_nothing_is_cut_out() -> None:
    embedder = embedder_of("class token", crops=False)
    rgb = np.zeros((32, 32, 3), np.uint8)
    found = embedder.pictures([Picture(rgb=rgb, full=None, asked=picture(rgb, HALF).asked)])[0]
    assert found.crop is None
    assert len(found.roi) == 1


def test_masks_and_boxes_of_the_same_place_agree() -> None:
    """Along the edges of cells both are the mean of the same patches."""
    rgb = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    found = embedder_of("class token").pictures([picture(rgb, HALF, (0.5, 0.5, 1, 1))])[0]
    cosines: np.ndarray = (found.roi * found.mask).sum(axis=1)
    assert cosines.min() > 0.9


def test_shares_of_cells() -> None:
    mask = np.zeros((4, 8), np.bool_)
    mask[:2, :2] = True
    assert shares_of([encode_mask(mask), encode_mask(~mask)], (2, 2)).tolist() == [
        [[0.5, 0], [0, 0]],
        [[0.5, 1], [1, 1]],
    ]


def test_texts_and_classes() -> None:
    embedder = Embedder(load(ModelConfig(name="demo")), ProbeConfig(prompts=("a {}", "the {}")))
    plain = embedder.texts(["a car", "the car"])
    (car,) = embedder.classes(["car"])
    mean = plain.mean(axis=0)
    assert car == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert embedder.texts([]).shape == (0, embedder.model.embed_dim)


def test_a_model_keeps_its_state() -> None:
    make, spec = TOWERS["class token"]
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rgb = np.zeros((32, 32, 3), np.uint8)
    found: list[Embedded] = Embedder(from_open_clip(model, spec=spec), ProbeConfig(), 2).pictures([picture(rgb, HALF)])
    assert len(found) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
