"""Ids of 9 bits instead of 53, so that images, regions and phrases share them: nothing is lost, whatever happens."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.dataset.tally import empty_rows, rows_of, write_categories
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.output import ids
from phrasebox.pipeline.output.ids import resolve_id_collisions
from phrasebox.stages.contract import records
from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.contract.records import Record, is_id_of, stable_id
from phrasebox.stages.files.shards import writing_shard
from phrasebox.stages.files.storage import found_in
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.light import rows_of as rows_of_run
from tests.pipeline.light import write_captions
from tests.pipeline.output.light_runs import RaisingStage, light_config, run_light
from tests.stages.write.rows import annotated, write_shards

SAMPLES = 60


@pytest.fixture(autouse=True)
def few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ID_BITS", 9)


def samples(numbers: Sequence[int], name: str = "") -> list[Record]:
    """Records with two regions each and phrases that no other record has; `name` stands before their ids."""
    records = []
    for record in map(annotated, numbers):
        phrases = tuple(
            replace(phrase, text=f"{phrase.text} {record.sample.sample_id}") for phrase in record.phrases
        )
        sample = replace(record.sample, sample_id=f"{name}{record.sample.sample_id}")
        records.append(replace(record, sample=sample, phrases=phrases, heat_maps=()))
    return records


def set_all_apart(data: Path) -> None:
    shards = found_in(data, "*.parquet")
    with rows_of(shards) as rows:
        resolve_id_collisions(rows, shards)
        write_categories(rows, data.parent / "categories.parquet")


def ids_in(data: Path) -> Json:
    """The ids of a dataset by what they are of; each is of one thing, and one of its hashes."""
    ids: dict[str, dict[str, int]] = {"images": {}, "regions": {}, "phrases": {}}
    for row in pq.read_table(data).to_pylist():
        ids["images"][row["sample_id"]] = row["id"]
        for number, region in enumerate(row["annotations"]):
            assert region["image_id"] == row["id"]
            ids["regions"][f"{row['sample_id']}\n{number}"] = region["id"]
            assert (
                ids["phrases"].setdefault(region["phrase"], region["category_id"]) == region["category_id"]
            )
    for numbers in ids.values():
        assert len(set(numbers.values())) == len(numbers)
        assert all(is_id_of(number, name) for name, number in numbers.items())
    categories = pq.read_table(data.parent / "categories.parquet").to_pylist()
    assert {row["name"]: row["id"] for row in categories} == ids["phrases"]
    return ids


def test_each_has_an_id_of_its_own_whatever_the_order(tmp_path: Path) -> None:
    write_shards(samples(range(SAMPLES)), tmp_path / "a/data", rows_per_file=7)
    set_all_apart(tmp_path / "a/data")
    ids = ids_in(tmp_path / "a/data")
    changed = {
        kind: sum(stable_id(name) != number for name, number in numbers.items())
        for kind, numbers in ids.items()
    }
    assert all(changed), "so few bits that some of each kind share an id"
    assert [line for line in validate(tmp_path / "a") if " id" in line] == []

    write_shards(samples(range(SAMPLES))[::-1], tmp_path / "b/data", rows_per_file=11)
    set_all_apart(tmp_path / "b/data")
    assert ids_in(tmp_path / "b/data") == ids


def test_a_run_that_was_killed_here_ends_with_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "killed"):
        write_shards(samples(range(SAMPLES)), tmp_path / name / "data", rows_per_file=7)
    set_all_apart(tmp_path / "whole/data")
    left = 3

    @contextmanager
    def killed(path: Path, on_written: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        with writing_shard(path, on_written) as file:
            yield file

    with monkeypatch.context() as patched:
        patched.setattr(ids, "writing_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            set_all_apart(tmp_path / "killed/data")
    set_all_apart(tmp_path / "killed/data")
    assert ids_in(tmp_path / "killed/data") == ids_in(tmp_path / "whole/data")


def test_a_run_that_is_resumed_ends_with_the_ids_of_one_that_was_not(tmp_path: Path) -> None:
    """It skips no sample because one with a row shares its id."""
    captions = write_captions(tmp_path, [f"word{number}" for number in range(SAMPLES)])
    whole, stopped = (light_config(captions, tmp_path / name) for name in ("whole", "stopped"))
    run_light(whole)
    with pytest.raises(ResourceError):
        run_light(stopped, last=RaisingStage(ResourceError("no cluster"), 1))
    run_light(stopped)
    ids = [
        {row["sample_id"]: row["id"] for row in rows_of_run(tmp_path / name)}
        for name in ("whole", "stopped")
    ]
    assert ids[0] == ids[1]
    assert len({*ids[0].values()}) == SAMPLES
    assert any(stable_id(name) != number for name, number in ids[0].items())


def test_rows_that_are_added_later(tmp_path: Path) -> None:
    """The phrases that they have in common with the first ones keep one id."""
    write_shards(samples(range(SAMPLES // 2)), tmp_path / "data", rows_per_file=7)
    set_all_apart(tmp_path / "data")
    common = samples(range(5), "new ")
    write_shards([*samples(range(SAMPLES // 2, SAMPLES)), *common], tmp_path / "data", rows_per_file=7)
    set_all_apart(tmp_path / "data")
    assert len(ids_in(tmp_path / "data")["phrases"]) == 2 * SAMPLES


def test_a_full_disk_while_counting_names_the_folder_to_change() -> None:
    with expect_error(ResourceError), empty_rows():
        raise duckdb.IOException("No space left on device")
