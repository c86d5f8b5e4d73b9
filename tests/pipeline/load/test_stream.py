"""Who sees which rows, in which order, and what is read for it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.load import RegionDataset, RegionStream
from phrasebox.pipeline.load.datasets import place_of_rank
from phrasebox.stages.contract.errors import ConfigError, InputError
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.load.conftest import NO_IMAGES, expected, given, names


def stream_of(folder: Path, **options: Any) -> RegionStream:
    return RegionStream(folder, NO_IMAGES, **{"shuffle_rows": 40, "seed": 7, **options})


def loaded(stream: RegionStream, workers: int, **options: Any) -> list[Any]:
    """Its samples, from a DataLoader."""
    loader = DataLoader(stream, batch_size=8, collate_fn=list, num_workers=workers, **options)
    return [sample for batch in loader for sample in batch]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (3, 0)])
def test_every_sample_comes_once(folder: Path, ranks: int, workers: int) -> None:
    samples = [
        s for rank in range(ranks) for s in loaded(stream_of(folder, rank=rank, world_size=ranks), workers)
    ]
    assert given(samples) == expected(folder)


@pytest.mark.parametrize("consumers", [1, 2, 7, 50])
def test_rows_are_dealt_out_evenly(with_images: Path, consumers: int) -> None:
    """Also if there are more consumers than row groups or rows."""
    streams = [
        stream_of(with_images, even="drop", rank=rank, world_size=consumers) for rank in range(consumers)
    ]
    size = len(expected(with_images)) // consumers
    assert {len(stream) for stream in streams} == {len(list(stream)) for stream in streams[:9]} == {size}


def test_the_order_follows_from_seed_and_epoch(folder: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        stream = stream_of(folder, seed=seed)
        stream.set_epoch(epoch)
        np.random.seed(epoch)  # of no consequence
        return names(stream)

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert order(0, 1) == orders[1]
    stored = list(expected(folder))
    assert {frozenset(found) for found in orders} == {frozenset(stored)}
    for other in orders[1:]:
        assert np.mean([a == b for a, b in zip(orders[0], other, strict=True)]) < 0.1
    places = [stored.index(name) for name in orders[0]]
    assert abs(np.corrcoef(places, range(len(places)))[0, 1]) < 0.6  # row groups come in another order
    assert names(stream_of(folder, shuffle=False)) == stored


def test_a_share_and_a_precision_have_a_least_score(folder: Path) -> None:
    dataset = open_dataset(folder)
    dataset = replace(dataset, manifest={**dataset.manifest, "calibration": "0" * 64})
    for choice in ({"keep": 0.3}, {"precision": 0.7}):
        stream = RegionStream(dataset, NO_IMAGES, even="drop", **choice)
        threshold = stream.threshold
        assert threshold is not None
        assert 0 < threshold.regions < threshold.total
        regions = given(stream)
        assert regions == expected(folder, lambda one, least=threshold.score: one["score"] >= least)
        assert sum(map(len, regions.values())) == threshold.regions
        assert given(RegionDataset(dataset, NO_IMAGES, **choice)) == regions
    plain = stream_of(folder, min_score=0.2, where="head = 'man'")
    assert plain.threshold is None
    assert given(plain) == expected(
        folder, lambda one: one["head"] == "man" and one["score"] >= np.float32(0.2)
    )


def test_workers_are_forked_from_a_process_that_has_read(folder: Path) -> None:
    """DuckDB's connection and threads are not theirs."""
    stream = stream_of(folder, where="score > 0.1", even="drop")
    before = names(stream)
    assert sorted(names(loaded(stream, 2, multiprocessing_context="fork"))) == sorted(before)
    assert names(stream) == before


def test_its_place_in_a_group_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of_rank(None, None) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place_of_rank(None, None) == (1, 2)
    assert place_of_rank(0, 3) == (0, 3)
    stream = stream_of(folder)
    assert (stream.rank, stream.world_size) == (1, 2)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with expect_error(ConfigError):
        next(iter(stream))
    assert (stream_of(folder).rank, stream_of(folder, rank=3, world_size=4).rank) == (0, 3)


def test_places_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ((0, None), (2, 2), (-1, 2)):
        with expect_error(ConfigError):
            place_of_rank(*place)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "3")
    with expect_error(ConfigError):
        place_of_rank(None, None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"min_score": 1.5}, ConfigError),
        ({"keep": 0.3, "min_score": 0.5}, ConfigError),
        ({"shuffle_rows": 0}, ConfigError),
        ({"shufle": True}, ConfigError),
        ({"even": "no"}, TypeError),
    ],
)
def test_options_that_cannot_be(folder: Path, options: Json, error: type[Exception]) -> None:
    """The last one cannot be for a length."""
    with expect_error(error, key="" if error is TypeError else tuple(options)):
        len(stream_of(folder, **options))


def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "dataset")
    (copy / "data" / "00001.parquet").write_bytes(b"PAR1 and no more")
    with expect_error(InputError):
        stream_of(copy)
    with expect_error(InputError):
        RegionStream(tmp_path / "nowhere")
