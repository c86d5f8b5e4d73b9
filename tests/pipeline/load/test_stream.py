"""Who sees what, in which order, and what is read for it."""

from __future__ import annotations

import pickle
import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.dataset.folder import open_dataset
from pipeline.load import Contents, RegionStream, collate_regions
from stages.contract.errors import ConfigError, InputError
from tests.pipeline.load.made import NO_IMAGES, Row, changed, expected, given, letters, names, regrouped, rows_of
from tests.synthetic import write_synthetic

more_workers_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def stream_of(folder: Path, **options: Any) -> RegionStream:
    return RegionStream(folder, NO_IMAGES, **{"shuffle_rows": 40, "seed": 7, **options})


def loaded(stream: RegionStream, workers: int, **options: Any) -> list[Any]:
    """Its samples, from a DataLoader."""
    loader = DataLoader(stream, batch_size=8, collate_fn=list, num_workers=workers, **options)
    return [sample for batch in loader for sample in batch]


@more_workers_than_cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_comes_once(folder: Path, ranks: int, workers: int) -> None:
    samples = [s for rank in range(ranks) for s in loaded(stream_of(folder, rank=rank, world_size=ranks), workers)]
    assert given(samples) == expected(folder)


@pytest.mark.parametrize("consumers", [1, 2, 5, 60, 250])
def test_rows_are_dealt_out_evenly(folder: Path, consumers: int) -> None:
    """Counted rows to within one, also if there are more consumers than row groups or rows."""
    counts = [len(stream_of(folder, count=True, rank=rank, world_size=consumers)) for rank in range(consumers)]
    samples = [
        list(stream_of(folder, count=True, rank=rank, world_size=consumers)) for rank in range(min(consumers, 30))
    ]
    assert sum(counts) == len(expected(folder))
    assert max(counts) - min(counts) <= 1
    assert [len(own) for own in samples] == counts[:30]


def test_the_order_follows_from_seed_and_epoch(folder: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        stream = stream_of(folder, seed=seed)
        stream.set_epoch(epoch)
        np.random.seed(epoch)  # of no consequence
        return names(stream)

    orders = [order(0, 0), order(0, 1), order(0, 2), order(1, 0)]
    assert order(0, 1) == orders[1]
    assert {frozenset(found) for found in orders} == {frozenset(expected(folder))}
    stored = list(expected(folder))
    for one, other in [(0, 1), (1, 2), (0, 3)]:
        same = np.mean([a == b for a, b in zip(orders[one], orders[other], strict=True)])
        assert same < 0.1
    places = [stored.index(name) for name in orders[0]]
    assert abs(np.corrcoef(places, range(len(places)))[0, 1]) < 0.6  # row groups come in another order
    assert np.mean(np.diff(places[:30]) == 1) < 0.2  # and so do their rows


def test_without_shuffling_rows_come_as_they_are_stored(folder: Path) -> None:
    assert names(stream_of(folder, shuffle=False)) == list(expected(folder))


@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_reaches_the_workers(folder: Path, persistent: bool) -> None:
    stream = stream_of(folder)
    loader = DataLoader(stream, batch_size=8, collate_fn=names, num_workers=2, persistent_workers=persistent)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([name for batch in loader for name in batch])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(7, marks=pytest.mark.slow)])
def test_even_ranks(folder: Path, ranks: int, workers: int) -> None:
    wanted = set(expected(folder))
    for even in ("drop", "repeat"):
        parts = [loaded(stream_of(folder, even=even, rank=rank, world_size=ranks), workers) for rank in range(ranks)]
        lengths = {len(part) for part in parts}
        assert lengths == {len(stream_of(folder, even=even, rank=0, world_size=ranks))}
        found = [name for part in parts for name in names(part)]
        spare = len(found) - len(wanted)
        if even == "drop":
            assert -ranks < spare <= 0
            assert len(set(found)) == len(found)
        else:
            assert 0 <= spare < ranks
            assert set(found) == wanted


def test_what_is_dropped_differs_by_epoch(folder: Path) -> None:
    dropped = set()
    for epoch in range(6):
        found: set[str] = set()
        for rank in range(3):
            stream = stream_of(folder, even="drop", rank=rank, world_size=3)
            stream.set_epoch(epoch)
            found |= set(names(stream))
        dropped |= {frozenset(set(expected(folder)) - found)}
    assert len(expected(folder)) % 3 == 0 or len(dropped) > 2


def test_the_length_is_only_known_if_counted(folder: Path) -> None:
    with pytest.raises(TypeError, match="count=True"):
        len(stream_of(folder))
    assert len(stream_of(folder, count=True)) == len(expected(folder))


@pytest.mark.parametrize("min_score", [0.3, 0.5, 0.6999, 0.95])
def test_a_least_score_is_the_same_as_filtering(folder: Path, min_score: float) -> None:
    def is_kept(region: Row) -> bool:
        return bool(np.float32(region["score"]) >= np.float32(min_score))

    for count in (False, True):
        assert given(stream_of(folder, min_score=min_score, count=count)) == expected(folder, is_kept)


def test_a_condition_is_the_same_as_filtering(folder: Path) -> None:
    found = given(stream_of(folder, where="head = 'man' AND w > 30", min_score=0.2))
    wanted = expected(
        folder, lambda region: region["head"] == "man" and region["bbox"][2] > 30 and region["score"] >= np.float32(0.2)
    )
    assert found == wanted
    assert wanted
    assert given(loaded(stream_of(folder, where="head = 'man' AND w > 30", min_score=0.2), 2)) == wanted


def test_rows_without_regions_and_with_errors_on_request(folder: Path) -> None:
    rows = rows_of(folder)
    sound = {row["sample_id"] for row in rows if row["error"] is None}
    assert set(names(stream_of(folder, keep_empty=True))) == sound
    everything = list(stream_of(folder, keep_empty=True, keep_failed=True))
    assert {sample["sample_id"]: sample["error"] for sample in everything} == {
        row["sample_id"]: row["error"] for row in rows
    }
    failed = {row["sample_id"] for row in rows} - sound
    assert failed
    assert set(names(stream_of(folder, keep_failed=True))) == failed | set(expected(folder))
    contents = Contents(images=False, masks="full", square_px=8, grid_hw=(2, 2))
    [*masks] = (sample["masks"] for sample in RegionStream(folder, contents, keep_failed=True) if sample["error"])
    assert {mask.shape for mask in masks} == {(0, 8, 8)}
    with pytest.raises(ConfigError, match="keep_failed"):
        RegionStream(folder, keep_failed=True)


def test_row_groups_that_cannot_hold_a_sample_are_not_read(tmp_path: Path) -> None:
    """Of ten groups of 30, one has only errors, one no regions, three low scores."""

    def change(number: int, row: Row) -> None:
        group = number // 30
        row["error"], row["error_detail"] = ("bad_image", "test") if group == 0 else (None, None)
        for region in row["annotations"]:
            region["score"] = 0.25 if group in (2, 3, 4) else 0.75
        if group in (0, 1):
            row["annotations"] = []

    folder = changed(write_synthetic(tmp_path / "dataset", 300, rows_per_file=300), change)
    for options, skipped in (
        ({}, 2),
        ({"min_score": 0.25}, 2),
        ({"min_score": 0.5}, 5),
        ({"min_score": 0.8}, 10),
        ({"min_score": 0.5, "keep_empty": True}, 1),
        ({"min_score": 0.5, "keep_failed": True}, 4),
    ):
        stream = stream_of(folder, **options)
        found = names(stream)
        assert stream.skipped_row_groups == skipped, options
        assert stream.read_row_groups == 10 - skipped, options
        if not options.keys() - {"min_score"}:
            least = options.get("min_score", 0)
            assert set(found) == set(expected(folder, lambda region, least=least: region["score"] >= least))


def test_only_the_needed_columns_are_read(with_images: Path) -> None:
    def leaves(contents: Contents, **options: Any) -> set[str]:
        return set(RegionStream(with_images, contents, **options)._maker.columns)

    plain = leaves(NO_IMAGES)
    assert not {name for name in plain if "segmentation" in name or name.startswith("image") or "area" in name}
    assert leaves(Contents()) - plain == {"image.bytes"}
    masks = {f"annotations.list.element.segmentation.{name}" for name in ("size", "counts")}
    assert leaves(Contents(images=False, grid_hw=(2, 2))) - plain == masks
    assert "annotations.list.element.area" in leaves(NO_IMAGES, where="area > 3")


def test_images_masks_and_tokens_from_spawned_workers(with_images: Path) -> None:
    contents = Contents(square_px=32, grid_hw=(4, 4), masks="full", tokenizer=letters)
    stream = RegionStream(with_images, contents, where="score > 0.1", shuffle_rows=10)
    batches = list(
        DataLoader(stream, batch_size=8, num_workers=2, collate_fn=collate_regions, multiprocessing_context="spawn")
    )
    wanted = expected(with_images, lambda region: region["score"] > 0.1)
    assert sorted(name for batch in batches for name in batch["sample_ids"]) == sorted(wanted)
    assert {tuple(batch["images"].shape[1:]) for batch in batches} == {(3, 32, 32)}
    assert {tuple(batch["grid_masks"].shape[1:]) for batch in batches} == {(4, 4)}
    assert all(torch.equal(batch["tokens"], letters(batch["phrases"])) for batch in batches)


def test_workers_are_forked_from_a_process_that_has_read(folder: Path) -> None:
    """DuckDB's connection and threads are not theirs."""
    stream = stream_of(folder, where="score > 0.1", count=True)
    before = names(stream)
    assert sorted(names(loaded(stream, 2, multiprocessing_context="fork"))) == sorted(before)
    assert names(stream) == before


def test_after_pickling_it_gives_the_same(with_images: Path) -> None:
    stream = RegionStream(with_images, Contents(square_px=8, tokenizer="dataset"), where="score > 0.1")
    before = names(stream)
    stream.set_epoch(3)
    again = pickle.loads(pickle.dumps(stream))
    assert names(again) == names(stream) != before


@pytest.mark.parametrize("taken", [0, 1, 17, 40, 41, 120])
def test_it_goes_on_where_it_stood(folder: Path, taken: int) -> None:
    stream = stream_of(folder, rank=1, world_size=2)
    stream.set_epoch(4)
    whole = names(stream)
    iterator = iter(stream)
    first = names(islice(iterator, taken))
    state = stream.state_dict()
    again = stream_of(folder, rank=1, world_size=2)
    again.load_state_dict(state)
    assert first + names(again) == whole
    assert again.state_dict()["epoch"] == 4
    assert names(again) == whole  # the one after begins anew
    with pytest.raises(ConfigError, match="seed"):
        stream_of(folder, seed=8).load_state_dict(state)


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_saved_state_holds_for_its_own_epoch_only(
    folder: Path, in_worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is given its state after the trainer has set the epoch."""

    def resumed(state: dict[str, int], epoch: int | None) -> RegionStream:
        stream = stream_of(folder)
        if in_worker:
            worker = SimpleNamespace(num_workers=1, id=0)
            monkeypatch.setattr("pipeline.load.datasets.get_worker_info", lambda: worker)
        steps = [lambda: stream.load_state_dict(state), lambda: None if epoch is None else stream.set_epoch(epoch)]
        for step in reversed(steps) if in_worker else steps:
            step()
        return stream

    stream = stream_of(folder)
    first, at_end = names(stream), stream.state_dict()
    half = names(islice(iter(stream), 60))
    in_middle = stream.state_dict()
    whole = {}
    for epoch in (1, 5):
        stream.set_epoch(epoch)
        whole[epoch] = names(stream)
        assert set(whole[epoch]) == set(first)
    assert names(resumed(at_end, 1)) == whole[1]
    assert names(resumed(at_end, None)) == []
    assert half + names(resumed(in_middle, None)) == first
    assert half + names(resumed(in_middle, 0)) == first
    again = resumed(in_middle, 5)
    assert names(again) == whole[5]
    again.set_epoch(1)
    assert names(again) == whole[1]


def test_going_on_does_not_read_what_is_behind(folder: Path) -> None:
    stream = stream_of(folder, shuffle_rows=30)
    iterator = iter(stream)
    names(islice(iterator, 130))
    again = stream_of(folder, shuffle_rows=30)
    again.load_state_dict(stream.state_dict())
    names(again)
    whole = stream_of(folder, shuffle_rows=30)
    names(whole)
    assert again.read_row_groups < whole.read_row_groups / 2


def test_its_place_in_a_group_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = stream_of(folder)
    assert (stream.rank, stream.world_size) == (1, 2)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="init_process_group"):
        next(iter(stream))
    assert (stream_of(folder).rank, stream_of(folder, rank=3, world_size=4).rank) == (0, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_score": 1.5}, "min_score"),
        ({"where": "nonsense ="}, "SQL"),
        ({"where": "no_column > 3"}, "no_column"),
        ({"shuffle_rows": 0}, "shuffle_rows"),
        ({"seed": -1}, "seed"),
        ({"even": "yes"}, "even"),
        ({"on_bad_image": "ignore"}, "on_bad_image"),
        ({"rank": 2, "world_size": 2}, "rank"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stream_of(folder, **options)


def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "dataset")
    (copy / "data" / "00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"00001\.parquet"):
        stream_of(copy)
    with pytest.raises(InputError, match="no such folder"):
        RegionStream(tmp_path / "nowhere")


def test_the_size_of_row_groups_is_of_no_consequence(folder: Path, tmp_path: Path) -> None:
    copy = regrouped(shutil.copytree(folder, tmp_path / "dataset"), 1000)
    assert given(stream_of(copy)) == given(stream_of(folder))
    samples = [s for rank in range(3) for s in stream_of(copy, rank=rank, world_size=3, min_score=0.4, even="drop")]
    assert len(samples) == len(given(samples))
    assert len(open_dataset(copy).shards) == 3
