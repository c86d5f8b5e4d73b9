"""Batches of a training: the same for the same seed and step, whoever asks."""

from pathlib import Path

import numpy as np
import torch

from phrasebox.pipeline.research.finetune.config import DataConfig
from phrasebox.pipeline.research.finetune.material import TuningData, shuffle_boxes
from phrasebox.stages.contract.errors import ConfigError
from tests.conftest import SCENES
from tests.messages import expect_error


def material(dataset: Path, batch_size: int = 4, seed: int = 1, **settings: object) -> TuningData:
    config = DataConfig.model_validate({"path": str(dataset), **settings})
    return TuningData(config, side_px=40, seed=seed, batch_size=batch_size)


def test_an_epoch_has_every_image_once_and_the_next_another_order(inline_dataset: Path) -> None:
    data = material(inline_dataset)
    assert (data.images, data.steps_per_epoch) == (SCENES, 3)
    pixels = [batch.rgb for batch in data.batches(range(6), 0, 1)]
    first, second = (torch.cat(pixels[part : part + 3]).flatten(1).sum(dim=1).tolist() for part in (0, 3))
    assert sorted(first) == sorted(second)
    assert first != second


def test_ranks_a_later_start_and_loaders_get_the_same_batches_but_another_seed_others(
    inline_dataset: Path,
) -> None:
    whole = list(material(inline_dataset).batches(range(4), 0, 1))
    later = list(material(inline_dataset, loaders=1).batches(range(3, 4), 0, 1))
    assert torch.equal(whole[3].rgb, later[0].rgb)
    assert whole[3].captions == later[0].captions
    other = next(material(inline_dataset, seed=2).batches(range(1), 0, 1))
    assert not torch.equal(whole[0].rgb, other.rgb)
    halves = [list(material(inline_dataset).batches(range(4), rank, 2)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.rgb, torch.cat([half[step].rgb for half in halves]))
        assert batch.captions == [caption for half in halves for caption in half[step].captions]


def test_shuffled_boxes_stay_in_their_image_and_leave_their_phrase(inline_dataset: Path) -> None:
    plain = next(material(inline_dataset, batch_size=8).batches(range(1), 0, 1))
    moved = next(material(inline_dataset, batch_size=8, boxes="shuffled").batches(range(1), 0, 1))
    assert plain.phrases == moved.phrases
    assert torch.equal(plain.rois[:, 0], moved.rois[:, 0])
    assert not torch.equal(plain.rois, moved.rois)


def chance(images: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, image]) for image in range(images)]


def test_shuffled_boxes_are_those_of_other_things() -> None:
    # The first three regions of image 0 name one thing.
    places = [(0, 1), (0, 1), (0, 1), (0, 3), (0, 5), (0, 7), (1, 9), (2, 11)]
    rois = torch.tensor([[image, x, x, x + 1, x + 1] for image, x in places], dtype=torch.float32)
    shuffles = {tuple(shuffle_boxes(rois, chance(3, seed))[:, 1].tolist()) for seed in range(20)}
    assert len(shuffles) > 6, "there are six rounds through four boxes, and two only boxes"
    for moved in shuffles:
        assert len({*moved[:3]}) == 1
        assert sorted({*moved[:6]}) == [1, 3, 5, 7]
        assert all(now != before for now, (_, before) in zip(moved, places, strict=True))
    assert torch.equal(shuffle_boxes(rois[6:7], chance(2)), rois[6:7]), "nothing to exchange"


def test_more_images_a_step_than_there_are_is_refused(inline_dataset: Path) -> None:
    with expect_error(ConfigError, key="batch_size"):
        material(inline_dataset, batch_size=64)
