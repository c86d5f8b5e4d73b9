"""A short campaign of damage; and what judges it, which has to find what is wrong."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import campaign as fought
from benchmarks.soak import stored
from benchmarks.soak.campaign import Campaign, fight
from benchmarks.soak.damage import DAMAGES, Fault, damage, shards_in
from benchmarks.soak.judgement import FAILURES, Judgement
from benchmarks.soak.lives import Outcome
from benchmarks.soak.stored import fight_in_storage
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.stages.contract.errors import PhraseboxError
from tests.build.datasets import copy_of


def quiet(_line: str) -> None:
    """Take a line of a log."""


@pytest.mark.slow
def test_a_campaign_loses_nothing_and_every_refusal_names_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("kill", "full disk", "sleeping run", "input replaced")
    monkeypatch.setattr(fought, "RUNNING", {name: fought.RUNNING[name] for name in names})
    kinds = {*names, *DAMAGES}
    judgement = fight(tmp_path / "out", len(kinds), seed=1, log=quiet)
    assert judgement.failures == {name: [] for name in FAILURES}
    # A run that has to be unfinished for what is left of the plan is killed again.
    assert judgement.injected.keys() == kinds
    assert {**judgement.injected, "kill": 1} == dict.fromkeys(kinds, 1)
    assert judgement.refusals.keys() >= {"full disk", "sleeping run"}


@pytest.mark.slow
def test_a_campaign_in_storage_leaves_whole_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fought, "SPARE", 0)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            environment.setenv(name, "")  # and is put back after the campaign has set it
        judgement = fight_in_storage(tmp_path / "out", len(stored.HURTS), seed=1, log=quiet)
    assert judgement.failures == {name: [] for name in FAILURES}
    assert judgement.injected == dict.fromkeys(stored.HURTS, 1)


def test_a_lost_shard_is_no_file_that_another_fault_has_added(inline_dataset: Path, tmp_path: Path) -> None:
    dataset = copy_of(inline_dataset, tmp_path)
    chance = random.Random(1)
    shards = shards_in(dataset)
    assert damage("extra file", dataset, chance) is not None
    while damage("lost shard", dataset, chance) is not None:
        pass
    [added] = shards_in(dataset)
    assert added not in shards


@pytest.mark.parametrize("kind", ["bit flip", "zeroed block", "short shard", "lost shard", "extra file"])
def test_damage_changes_the_content_of_the_folder_and_names_a_file(
    kind: str, inline_dataset: Path, tmp_path: Path
) -> None:
    dataset = copy_of(inline_dataset, tmp_path)
    before = {path: path.read_bytes() for path in shards_in(dataset)}
    fault = damage(kind, dataset, random.Random(1))
    assert fault is not None
    assert fault.kind == kind
    assert {path: path.read_bytes() for path in shards_in(dataset)} != before


def test_damage_of_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert [damage(kind, tmp_path, random.Random(1)) for kind in DAMAGES] == [None] * len(DAMAGES)


def judged(tmp_path: Path, code: int, text: str, *faults: Fault) -> tuple[list[Fault], Judgement]:
    campaign = Campaign(tmp_path, 1, random.Random(1), quiet)
    return campaign.judge(Outcome(code, text), *faults), campaign.judgement


def test_a_refusal_that_names_another_cause_is_wrong(tmp_path: Path) -> None:
    fault = Fault("one", kind="sleeping run", cause="another run is writing")
    named, judgement = judged(tmp_path, 2, "error: another run is writing to out/", fault)
    assert named == [fault]
    assert not any(judgement.failures.values())
    _, judgement = judged(tmp_path, 2, "error: the disk is full", fault)
    assert len(judgement.failures["wrong cause"]) == 1


@pytest.mark.parametrize(
    ("code", "text"), [(1, "error: no"), (2, "Traceback (most recent call last)"), (-11, "")]
)
def test_another_end_is_a_crash(tmp_path: Path, code: int, text: str) -> None:
    _, judgement = judged(tmp_path, code, text, Fault("one", cause="no"))
    assert len(judgement.failures["crash"]) == 1


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    return list(open_dataset(dataset).rows())


def test_lost_doubled_and_different_rows_are_found(inline_dataset: Path) -> None:
    rows = rows_of(inline_dataset)
    wanted = {row["sample_id"]: row for row in rows}
    region = next(row for row in rows if row["annotations"])
    moved = {
        **region,
        "annotations": [{**region["annotations"][0], "score": -1.0}, *region["annotations"][1:]],
    }
    for hurt, count in ((rows, 0), (rows[1:], 1), ([*rows, rows[0]], 1), ([moved], 2)):
        judgement = Judgement(quiet)
        judgement.compare(hurt, wanted, "after a test")
        assert len(judgement.failures["wrong rows"]) == count


def test_a_reader_never_takes_a_damaged_page_for_rows(inline_dataset: Path, tmp_path: Path) -> None:
    wanted = {row["sample_id"]: row for row in rows_of(inline_dataset)}
    judgement = Judgement(quiet)
    for seed in range(20):
        dataset = copy_of(inline_dataset, tmp_path / str(seed))
        damage("bit flip", dataset, random.Random(seed))
        try:
            judgement.compare(rows_of(dataset), wanted, f"with seed {seed}")
        except PhraseboxError:
            continue
    assert judgement.failures["wrong rows"] == []
