"""Samples by number."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.load import Contents, RegionDataset, RegionStream, collate_regions
from pipeline.load.datasets import StreamOptions
from pipeline.load.row_groups import LoadOptions
from stages.contract.errors import ConfigError
from tests.pipeline.load.conftest import NO_IMAGES, expected, given, names


def test_it_holds_the_samples_in_stored_order(folder: Path) -> None:
    dataset = RegionDataset(folder, NO_IMAGES)
    assert len(dataset) == len(expected(folder))
    samples = [dataset[number] for number in range(len(dataset))]
    assert names(samples) == list(expected(folder))
    assert given(samples) == expected(folder)
    assert repr(dataset) == f"RegionDataset: {len(dataset)} samples of {dataset.dataset!r}"
    assert dataset[-1]["sample_id"] == names(samples)[-1]
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match="expected a number below"):
            dataset[index]
    dataset[0]["boxes_xyxy_px"].zero_()  # a change to a sample does not stay
    assert torch.equal(dataset[0]["boxes_xyxy_px"], samples[0]["boxes_xyxy_px"])


def test_help_names_every_option() -> None:
    for loader, options in ((RegionDataset, LoadOptions), (RegionStream, StreamOptions)):
        documented = set(re.findall(r"\w+", str(loader.__doc__)))
        assert set(options.model_fields) <= documented


def test_a_choice_is_the_streams_also_after_pickling(folder: Path) -> None:
    choice = {"min_score": 0.4, "where": "w > 40", "keep_empty": True}
    dataset = RegionDataset(folder, NO_IMAGES, **choice)
    assert given(dataset) == given(RegionStream(folder, NO_IMAGES, **choice))
    assert given(pickle.loads(pickle.dumps(dataset))) == given(dataset)
    with pytest.raises(ConfigError, match=r"^min_scor: no such key; did you mean min_score\?$"):
        RegionDataset(folder, NO_IMAGES, min_scor=0.4)
    with pytest.raises(
        ConfigError, match="shuffle: no such key; keys here: keep_empty, min_score, on_bad_image, where"
    ):
        RegionDataset(folder, NO_IMAGES, shuffle=False)


def test_row_groups_are_read_once_a_batch_and_the_last_ones_are_kept(folder: Path) -> None:
    """Shards of 90, 90 and 50 rows, groups of 30."""
    dataset = RegionDataset(folder, NO_IMAGES, cached_bytes=1)
    indices = np.random.default_rng(0).permutation(len(dataset)).tolist()
    samples = dataset.__getitems__(indices + indices[:3])
    assert dataset.read_row_groups == 8
    stored = list(expected(folder))
    assert names(samples) == [stored[index] for index in indices + indices[:3]]
    dataset = RegionDataset(folder, NO_IMAGES)
    assert dataset[0]["sample_id"] != dataset[30]["sample_id"]
    two = sum(table.nbytes for table in dataset._cache.values())
    dataset = RegionDataset(folder, NO_IMAGES, cached_bytes=two)
    for numbers, read in (((0, 1, 30, 0, 31, 1), 2), ((len(dataset) - 1, len(dataset) // 2, 0), 5)):
        for number in numbers:
            dataset[number]
        assert dataset.read_row_groups == read


@pytest.mark.parametrize("workers", [0, 2])
def test_with_torchs_samplers(with_images: Path, workers: int) -> None:
    dataset = RegionDataset(with_images, Contents(square_px=8), where="score > 0.1")
    sample_ids = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, drop_last=False)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=collate_regions)
        sample_ids += [name for batch in loader for name in batch["sample_ids"]]
    assert set(sample_ids) == set(expected(with_images, lambda region: region["score"] > 0.1))
