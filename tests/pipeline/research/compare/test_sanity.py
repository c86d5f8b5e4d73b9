"""Towers with shuffled weights: everything that should change does, and the model does not."""

import numpy as np
import pytest
import torch
from rich.console import Console

from phrasebox.pipeline.research.compare.maps import Contest, contenders_of
from phrasebox.pipeline.research.compare.pictures import ComparedImage, Question
from phrasebox.pipeline.research.compare.sanity import check_sanity, rank_correlation, shuffle_weights
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.prepare import ImagesConfig
from tests.factories import TOWERS

LABELS = ("rollout", "rise")


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
    if tower == "class token":
        old, new = (part.blocks[-1].qkv.weight.flatten() for part in (model.tower, shuffled))
        assert torch.equal(old.sort().values, new.sort().values), "the numbers stay"
    embedding = shuffled.encode(rgb)
    assert embedding.isfinite().all()
    assert torch.cosine_similarity(embedding, before).item() < 0.9
    assert torch.equal(model.tower.encode(rgb), before)
    assert torch.equal(shuffle_weights(model).tower.encode(rgb), embedding), "the same again"


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


def test_explainers_with_many_forward_passes_are_not_checked() -> None:
    model = model_of("class token")
    contenders = contenders_of(",".join(LABELS), "class_token", "other")
    contest = Contest(model, ModelConfig(), ImagesConfig(), contenders, Console(quiet=True))
    images = []
    for number in range(3):
        phrase = Phrase(text=f"thing {number}", caption_index=0, start=0, end=1, head="thing")
        record = Record(
            sample=Sample(sample_id=str(number), source=""),
            width_px=32,
            height_px=32,
            pixels=Pixels(rgb=np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)),
            phrases=(phrase,),
        )
        question = Question(phrase=phrase, object_="", query=None)
        images.append(ComparedImage(number=number, source=record, record=record, questions=(question,)))
    stage = contest.stages(model)["rollout"]
    maps = [{"rollout": each.heat_maps} for each in stage.process([image.record for image in images])]
    names = {"rollout": {"weights_all", "phrase_swapped"}, LABELS[1]: set()}
    for values in check_sanity(contest, images, maps).values():
        assert {label: {*figures} for label, figures in values.items()} == names
