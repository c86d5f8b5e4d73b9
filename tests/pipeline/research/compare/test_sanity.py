"""Towers with shuffled weights: everything that should change does, and the model does not."""

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline.research.compare.maps import Contest, contenders_of
from pipeline.research.compare.pictures import ComparedImage, Question
from pipeline.research.compare.sanity import check_sanity, rank_correlation, shuffle_weights
from stages.contract.records import Phrase, Pixels, Record, Sample
from stages.prepare import ImagesConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import ModelConfig
from stages.shared.model.load import from_open_clip
from stages.shared.model.towers.vision import VisionTower
from tests.factories import TOWERS

LABELS = ("rollout", "occlusion")


def model_of(tower: str) -> ClipModel:
    make, spec = TOWERS[tower]
    return from_open_clip(make(), spec=spec)


def pixels_for(model: ClipModel) -> torch.Tensor:
    side = model.input.size_px
    return torch.randint(
        0, 256, (1, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@torch.no_grad()
@pytest.mark.parametrize("tower", ["class token", "ResNet", "ConvNeXt", "SigLIP"])
def test_a_shuffled_tower_is_another_one_and_the_model_stays(tower: str) -> None:
    model = model_of(tower)
    rgb = pixels_for(model)
    before = model.tower.encode(rgb)
    tokens = model.tower.embed(rgb)
    shuffled = shuffle_weights(model).tower
    assert not torch.allclose(shuffled.embed(rgb), tokens)
    embedding = shuffled.encode(rgb)
    assert embedding.isfinite().all()
    assert torch.cosine_similarity(embedding, before).item() < 0.9
    assert torch.equal(model.tower.encode(rgb), before)
    assert torch.equal(shuffle_weights(model).tower.encode(rgb), embedding), "the same again"


def test_weights_keep_their_numbers_and_a_block_fits_together() -> None:
    model = model_of("class token")
    tower = model.tower
    shuffled = shuffle_weights(model).tower
    assert isinstance(tower, VisionTower)
    assert isinstance(shuffled, VisionTower)
    old = tower.blocks[-1]
    new = shuffled.blocks[-1]
    assert torch.equal(old.qkv.weight.flatten().sort().values, new.qkv.weight.flatten().sort().values)
    assert not torch.equal(old.qkv.weight, new.qkv.weight)


def test_ranks_ignore_the_scale_and_share_ties() -> None:
    values = np.random.default_rng(0).random((5, 7), np.float32)
    assert rank_correlation(values, np.exp(9 * values)) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)
    # By hand: ranks 1.5 1.5 3 4 against 1 2 3 4.
    a = np.array([[0.0, 0.0, 1.0, 2.0]], np.float32)
    b = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    assert rank_correlation(a, b) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))
    assert rank_correlation(values * 0, values * 0) == 0.0, (
        "a map that is the same everywhere is like no other"
    )


def test_explainers_with_many_forward_passes_are_not_checked_on_fewer_images_but_not_at_all() -> None:
    model = model_of("class token")
    contenders = contenders_of("rollout,occlusion", "class_token", "other")
    contest = Contest(model, ModelConfig(), ImagesConfig(), contenders, Console(quiet=True))
    images = []
    for number in range(3):
        rgb = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        phrase = Phrase(text=f"thing {number}", caption_index=0, start=0, end=1, head="thing")
        sample = Sample(sample_id=str(number), source="")
        record = Record(sample=sample, width_px=32, height_px=32, pixels=Pixels(rgb=rgb), phrases=(phrase,))
        question = Question(phrase=phrase, thing="", query=None)
        images.append(ComparedImage(number=number, source=record, record=record, questions=(question,)))
    stage = contest.stages(model)["rollout"]
    maps = [{"rollout": each.heat_maps} for each in stage.process([image.record for image in images])]
    rows_by_label = {
        label: [row for row in check_sanity(contest, images, maps) if row.label == label]
        for label in LABELS
    }
    assert [row.values for row in rows_by_label["occlusion"]] == [{}] * 3
    names = {"weights_all", "phrase_swapped"}
    assert all(row.values.keys() == names for row in rows_by_label["rollout"])
