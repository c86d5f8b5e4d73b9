"""Boxes and their names: grids, crops and proposals, pools, and the choice of the softmax."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.contract.errors import InputError
from stages.contract.records import Phrase, Pixels, Record, Sample
from stages.shared.images.crops import crop_regions
from stages.shared.model.config import InputSpec, ModelConfig
from stages.shared.model.describe import describe
from stages.sources.grid import (
    CropSource,
    CropSourceConfig,
    GridSource,
    GridSourceConfig,
    grid_boxes,
    splits_up_to,
)
from stages.sources.looks import CropEmbedder
from stages.sources.naming import read_pool, shares_of
from stages.sources.proposals import build_hierarchy, segment_finely, suppress_overlaps
from tests.messages import expect_error


def phrase(text: str, head: str) -> Phrase:
    return Phrase(text=text, caption_index=0, start=0, end=len(text), head=head)


def test_a_grid_covers_the_image_once_and_is_at_most_twice_as_long_as_wide() -> None:
    for size in ((7, 10), (2, 9), (300, 200)):
        drawn = np.zeros(size, int)
        for x0, y0, x1, y1 in grid_boxes(size, 3, 3):
            drawn[y0:y1, x0:x1] += 1
        assert (drawn == 1).all()
    assert len(grid_boxes((300, 200), 3, 4)) == 12
    assert len(grid_boxes((2, 9), 3, 3)) == 6, "an empty row of blocks is none"
    assert splits_up_to(2) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert max(rows / columns for rows, columns in splits_up_to(6)) == 2
    assert len(set(splits_up_to(6))) == 24


def test_crops_follow_from_the_sample() -> None:
    canvas = np.zeros((120, 90, 3), np.uint8)

    def boxes(name: str) -> list[tuple[int, ...]]:
        source = CropSource(CropSourceConfig(), ModelConfig(name="demo"))
        candidates = source.candidates(Record(sample=Sample(sample_id=name, source="")), canvas)
        return [candidate.box_xyxy for candidate in candidates]

    grids = {tuple(boxes(str(number))) for number in range(40)}
    assert len(grids) > 10
    assert max(map(len, grids)) == 20
    assert boxes("a") == boxes("a")


class RecordingTower:
    """A tower that notes what it is shown."""

    def __init__(self) -> None:
        self.shown: list[np.ndarray[Any, Any]] = []

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        self.shown.append(rgb.numpy())
        return rgb.float().mean(dim=(1, 2))


@pytest.mark.parametrize("box", [(0, 0, 2000, 200), (100, 300, 2100, 500), (2090, 0, 2100, 500)], ids=str)
def test_a_long_box_is_shown_without_aliasing_and_as_everywhere(box: tuple[int, int, int, int]) -> None:
    """Stripes of one pixel are grey where they are averaged, and black and white where pixels are picked."""
    rgb = np.random.default_rng(4).integers(0, 256, (500, 2100, 3)).astype(np.uint8)
    rgb[:, ::2] = 0
    tower = RecordingTower()
    spec = InputSpec(size_px=224, patch_px=1, mean=(0, 0, 0), std=(1, 1, 1))
    model: Any = SimpleNamespace(tower=tower, input=spec, device=torch.device("cpu"), name="seen")
    CropEmbedder(model, 1)([(rgb, [box])])
    ((shown,),) = tower.shown
    x0, y0, x1, y1 = box
    expected = Image.fromarray(rgb[y0:y1, x0:x1]).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(shown, np.asarray(expected))
    assert np.array_equal(shown, crop_regions(rgb, [(x0 / 2100, y0 / 500, x1 / 2100, y1 / 500)], 224)[0])


@pytest.mark.parametrize("batch_size", [None, 5])
def test_as_many_images_arrive_as_a_forward_pass_has(batch_size: int | None) -> None:
    config = ModelConfig(name="demo", batch_size=batch_size)
    source = GridSource(GridSourceConfig(by="roi"), config).with_description(describe(config))
    source.setup()
    rows = source.forward_batch_size()
    assert (rows, source.forward_batch_size("cuda")) == ((16, 64) if batch_size is None else (5, 5))
    pixels = Pixels(rgb=np.zeros((40, 40, 3), np.uint8))
    record = Record(sample=Sample(sample_id="1", source=""), phrases=(phrase("dog", "dog"),), pixels=pixels)
    source.process([replace(record, width_px=40, height_px=40)] * (2 * rows))
    assert source.take_forwards().images == 2 * rows


def test_the_softmax_over_the_texts() -> None:
    boxes = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    texts = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    cosines, shares = shares_of(boxes, texts, temperature=1.0)
    assert cosines.tolist() == [[1.0, 0.0], [0.6, 0.8]]
    of_first = [round(np.e / (np.e + 1), 6), round(1 / (1 + np.exp(0.2)), 6)]
    assert shares.tolist() == [[share, round(1 - share, 6)] for share in of_first]
    assert shares_of(boxes, texts, temperature=0.01)[1].round(3).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_proposals_find_what_stands_apart() -> None:
    rgb = np.full((80, 100, 3), 200, np.uint8)
    rgb[10:40, 10:30] = (200, 0, 0)
    rgb[50:70, 60:90] = (0, 0, 200)
    rgb[55:65, 70:80] = (250, 250, 0)  # in the blue one
    labels = segment_finely(rgb, scale=50, min_size_px=20)
    segments = [segment for segment in build_hierarchy(rgb, labels) if 20 <= segment.area_px <= 7000]
    proposals = suppress_overlaps(segments, most=50, iou=0.9)
    boxes = [proposal.box_xyxy for proposal in proposals]

    def nearest(*box: int) -> int:
        return min(max(abs(a - b) for a, b in zip(box, other, strict=True)) for other in boxes)

    assert nearest(10, 10, 30, 40) <= 3
    assert nearest(60, 50, 90, 70) <= 3, "with what is in it"
    assert nearest(70, 55, 80, 65) <= 3, "and that"
    assert all(proposal.area_px == np.isin(labels, sorted(proposal.parts)).sum() for proposal in proposals)
    first = suppress_overlaps(segments, most=2, iou=0.9)
    assert [proposal.parts for proposal in first] == [proposal.parts for proposal in proposals[:2]]
    plain = np.full((50, 50, 3), 90, np.uint8)
    assert build_hierarchy(plain, segment_finely(plain, scale=100, min_size_px=10)) == [], "one colour"


def test_a_pool_is_read_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    path.write_text("The  Red Car\n\nred car\nbig dogs\tdog\n")
    heads = {text: phrase.head for text, phrase in read_pool(path).items()}
    assert heads == {"red car": "car", "big dogs": "dog"}
    for text in ("", "\n \n", "car\tcar\tmore\n", "!!!\n"):
        path.write_text(text)
        with expect_error(InputError):
            read_pool(path)
