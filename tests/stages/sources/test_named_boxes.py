"""Boxes and their names: grids, crops and proposals, and the choice of the softmax."""

from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.calibrate.presence import features_by_text
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.detected import DetectorPresence
from phrasebox.stages.scores.score import Calibration
from phrasebox.stages.sources.grid import (
    CropSource,
    CropSourceConfig,
    GridSource,
    GridSourceConfig,
    grid_boxes,
    splits_up_to,
)
from phrasebox.stages.sources.naming import shares_of
from phrasebox.stages.sources.proposals import (
    ProposalSource,
    ProposalSourceConfig,
    build_hierarchy,
    segment_finely,
)
from phrasebox.stages.sources.source import NOT_FINITE
from phrasebox.stages.sources.source_stage import SourceRegionsStage


def test_a_grid_covers_the_image_once_and_is_at_most_twice_as_long_as_wide() -> None:
    for size in ((7, 10), (2, 9), (300, 200)):
        drawn = np.zeros(size, int)
        for x0, y0, x1, y1 in grid_boxes(size, 3, 3):
            drawn[y0:y1, x0:x1] += 1
        assert (drawn == 1).all()
    assert len(grid_boxes((2, 9), 3, 3)) == 6, "an empty row of blocks is none"
    assert splits_up_to(2) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert max(rows / columns for rows, columns in splits_up_to(6)) == 2


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


@pytest.mark.parametrize("by", ["crop", "roi"])
def test_a_part_is_called_by_its_nearest_phrase_and_counts_as_an_image_where_it_is_cut(by: Any) -> None:
    config = ModelConfig(name="demo", batch_size=4, device="cpu", precision="fp32")
    source = GridSource(GridSourceConfig(by=by, blocks=2, temperature=1.0), config, describe(config))
    source.setup()
    assert (source.forward_batch_size(), source.forward_batch_size("cuda")) == (4, 4)
    rgb = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    texts = ("red circle", "green square")
    phrases = tuple(
        Phrase(text=text, caption_index=0, start=0, end=len(text), head=text.split()[1]) for text in texts
    )
    record = Record(
        sample=Sample(sample_id="1", source="", captions=texts),
        phrases=phrases,
        pixels=Pixels(rgb=rgb),
        width_px=60,
        height_px=40,
    )
    answers = source.process([record] * 6)
    assert source.take_forwards().images == {"crop": 4, "roi": 1}[by] * 6
    assert [answer.regions for answer in answers] == [answers[0].regions] * 6
    regions = answers[0].regions
    boxes = {region.box_xywh_px for region in regions}
    assert boxes == {(x, y, 30, 20) for x in (0, 30) for y in (0, 20)}
    assert len(regions) == 4, "each block has one name"
    assert all(0.5 <= region.score < 0.8 and region.similarity for region in regions), "the larger share"


@pytest.mark.parametrize("by", ["crop", "roi"])
def test_an_image_whose_embeddings_are_not_finite_has_no_region_and_says_why(
    by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 16 bits may overflow. Its neighbour in the same pass has its regions, and nothing is judged absent."""
    config = ModelConfig(name="demo", device="cpu", precision="fp32")
    source = GridSource(GridSourceConfig(by=by, blocks=1), config, describe(config))
    source.setup()
    phrases = (Phrase(text="circle", caption_index=0, start=0, end=6, head="circle"),)
    sound, lost = (
        Record(
            sample=Sample(sample_id=name, source="", captions=("circle",)),
            phrases=phrases,
            pixels=Pixels(rgb=np.full((30, 30, 3), colour, np.uint8)),
            width_px=30,
            height_px=30,
        )
        for name, colour in (("1", 200), ("2", 0))
    )
    embed = source._embed_boxes._embed

    def overflow(images: Any) -> Any:
        return [
            boxes if rgb.any() else np.full_like(boxes, np.nan)
            for (rgb, _), boxes in zip(images, embed(images), strict=True)
        ]

    monkeypatch.setattr(source._embed_boxes, "_embed", overflow)
    answers = source.process([sound, lost])
    assert [len(answer.regions) for answer in answers] == [1, 0]
    assert [answer.notes for answer in answers] == [(), (NOT_FINITE,)]
    assert features_by_text(answers[1]) == {}
    presence = DetectorPresence(
        bias=-9.0,
        weight={"similarity": 0.0},
        mean={"similarity": 0.0},
        scale={"similarity": 1.0},
        absent_share=0.5,
    )
    calibration = Calibration(
        bias=0.0, weight={}, mean={}, scale={}, made_with={}, made_from={}, presence=presence
    )
    stage = SourceRegionsStage(RegionsConfig(absent_share=0.5), calibration)
    assert [len(judged.absent) for judged in stage.process(answers)] == [1, 0]
    assert stage.caption_log_ratios(answers[1]) == {}


def test_a_cosine_of_zero_is_told_from_one_that_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="demo", device="cpu", precision="fp32")
    source = GridSource(GridSourceConfig(blocks=1), config, describe(config))
    source.setup()
    record = Record(
        sample=Sample(sample_id="1", source="", captions=("circle",)),
        phrases=(Phrase(text="circle", caption_index=0, start=0, end=6, head="circle"),),
        pixels=Pixels(rgb=np.zeros((30, 30, 3), np.uint8)),
        width_px=30,
        height_px=30,
    )
    nothing = [np.zeros((1, 192), np.float32)]
    monkeypatch.setattr(source._embed_boxes, "_embed", lambda _: nothing)
    ((region,),) = (answer.regions for answer in source.process([record]))
    assert region.similarity == 1e-6


def test_the_softmax_over_the_texts() -> None:
    boxes = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    texts = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    cosines, shares = shares_of(boxes, texts, temperature=1.0)
    assert cosines.tolist() == [[1.0, 0.0], [0.6, 0.8]]
    of_first = [round(np.e / (np.e + 1), 6), round(1 / (1 + np.exp(0.2)), 6)]
    assert shares.tolist() == [[share, round(1 - share, 6)] for share in of_first]
    assert shares_of(boxes, texts, temperature=0.01)[1].round(3).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_proposals_surround_what_stands_apart() -> None:
    rgb = np.full((80, 100, 3), 200, np.uint8)
    rgb[10:40, 10:30] = (200, 0, 0)
    rgb[50:70, 60:90] = (0, 0, 200)
    rgb[55:65, 70:80] = (250, 250, 0)  # in the blue one
    source = ProposalSource(ProposalSourceConfig(), ModelConfig(name="demo"))
    candidates = source.candidates(Record(sample=Sample(sample_id="a", source="")), rgb)
    boxes = [candidate.box_xyxy for candidate in candidates]
    for box in ((10, 10, 30, 40), (60, 50, 90, 70), (70, 55, 80, 65)):
        distances = [np.abs(np.subtract(box, other)).max() for other in boxes]
        assert min(distances) <= 3, box
    for candidate in candidates:
        x0, y0, x1, y1 = candidate.box_xyxy
        assert candidate.mask is not None
        assert candidate.mask.sum() == candidate.mask[y0:y1, x0:x1].sum() > 0
    plain = np.full((50, 50, 3), 90, np.uint8)
    assert build_hierarchy(plain, segment_finely(plain)) == [], "one colour"


def test_small_segments_are_few_and_cover_the_image() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (90, 70, 3), np.uint8)
    labels = segment_finely(noise, most=30)
    assert labels.shape == (90, 70)
    assert np.unique(labels).tolist() == list(range(labels.max() + 1))
    assert 1 < labels.max() < 30
