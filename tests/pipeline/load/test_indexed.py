"""Samples by number."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from phrasebox.pipeline.load import Contents, RegionDataset, RegionStream
from phrasebox.pipeline.load.datasets import StreamOptions
from phrasebox.pipeline.load.row_groups import LoadOptions
from phrasebox.stages.contract.errors import ConfigError
from tests.messages import expect_error
from tests.pipeline.load.conftest import NO_IMAGES, expected, given, letters, names


def test_it_holds_the_samples_in_stored_order(folder: Path) -> None:
    dataset = RegionDataset(folder, NO_IMAGES)
    assert len(dataset) == len(expected(folder))
    samples = [dataset[number] for number in range(len(dataset))]
    assert names(samples) == list(expected(folder))
    assert given(samples) == expected(folder)
    assert repr(dataset) == f"RegionDataset: {len(dataset)} samples of {dataset.dataset!r}"
    assert dataset[-1]["sample_id"] == names(samples)[-1]
    with pytest.raises(IndexError, match="expected a number below"):
        dataset[-len(dataset) - 1]
    dataset[0]["boxes_xyxy_px"].zero_()  # a change to a sample does not stay
    assert torch.equal(dataset[0]["boxes_xyxy_px"], samples[0]["boxes_xyxy_px"])


def test_help_names_every_option() -> None:
    for loader, options in ((RegionDataset, LoadOptions), (RegionStream, StreamOptions)):
        documented = set(re.findall(r"\w+", str(loader.__doc__)))
        assert set(options.model_fields) <= documented


def test_a_choice_is_the_streams_also_after_pickling(folder: Path) -> None:
    choice = {"min_score": 0.4, "where": "w > 40", "keep_empty": True}
    dataset = RegionDataset(folder, Contents(images=False, tokenizer=letters), **choice)
    assert given(dataset) == given(RegionStream(folder, NO_IMAGES, **choice))
    assert given(pickle.loads(pickle.dumps(dataset))) == given(dataset)
    with expect_error(ConfigError, key="min_scor"):
        RegionDataset(folder, NO_IMAGES, min_scor=0.4)
    with expect_error(ConfigError, key="shuffle"):
        RegionDataset(folder, NO_IMAGES, shuffle=False)


def test_row_groups_are_read_once_a_batch_and_the_last_ones_are_kept(folder: Path) -> None:
    """Shards of 90, 90 and 50 rows, groups of 30."""
    dataset = RegionDataset(folder, NO_IMAGES, cached_bytes=1)
    indices = np.random.default_rng(0).permutation(len(dataset)).tolist()
    samples = dataset.__getitems__(indices + indices[:3])
    assert dataset.read_row_groups == 8
    stored = list(expected(folder))
    assert names(samples) == [stored[index] for index in indices + indices[:3]]
    for cached_bytes, read in ((2**28, 2), (1, 4)):
        dataset = RegionDataset(folder, NO_IMAGES, cached_bytes=cached_bytes)
        for number in (0, 1, 30, 0, 31):
            dataset[number]
        assert dataset.read_row_groups == read
