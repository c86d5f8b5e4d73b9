"""Datasets, answers and marks of a made-up earlier version are read as those of today, and later ones are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.config.run_config import stored_config
from phrasebox.pipeline.dataset import caption_doubt
from phrasebox.pipeline.dataset.append_log import LogLine
from phrasebox.pipeline.dataset.folder import open_any_dataset, open_dataset
from phrasebox.pipeline.dataset.marks import Mark, append_marks, read_marks
from phrasebox.pipeline.dataset.reviews import Review, append_review, read_reviews
from phrasebox.pipeline.dataset.signature import is_own, sign
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.output import manifest
from phrasebox.pipeline.output.merge import merge
from phrasebox.pipeline.output.repair import repair
from phrasebox.stages.contract import schema_versions
from phrasebox.stages.contract.errors import InputError, SchemaError
from phrasebox.stages.contract.schema import DATASET_FIELDS, OPTIONAL_FIELDS
from phrasebox.stages.contract.schema_versions import MANIFEST, ROWS
from phrasebox.stages.files.shards import origin_of, with_origin
from tests.build.datasets import (
    Json,
    change_manifest,
    change_rows,
    copy_of,
    list_shards,
    manifest_of,
    rows_of,
    shards_of,
)
from tests.build.files import read_lines, write_json, write_lines
from tests.build.readings import draw_images, read_everywhere
from tests.messages import assert_message, expect_error

STORED = Path(__file__).parents[2] / "stored" / "0.1-schema-2" / "dataset"
FIELDS = {field.name: field.arrow for field in (*DATASET_FIELDS, *OPTIONAL_FIELDS)}


def as_before(row: Json) -> Json:
    """A row of the version before: without `phrase_count`, `warnings` with another name, and `refined` as a bool."""
    regions = [{**region, "refined": region["refined"] != "none"} for region in row["annotations"]]
    others = {key: value for key, value in row.items() if key not in ("phrase_count", "warnings")}
    return {**others, "notes": row["warnings"], "annotations": regions}


def lift_rows(table: Any) -> Any:
    """The step from there to the version of today."""
    names = [name for name in FIELDS if name in {*table.column_names, "phrase_count", "warnings"}]
    rows = [
        {
            **row,
            "phrase_count": len(row["phrases"]),
            "warnings": row["notes"],
            "annotations": [{**region, "refined": "grabcut"} for region in row["annotations"]],
        }
        for row in table.to_pylist()
    ]
    return pa.Table.from_pylist(rows, pa.schema([FIELDS[name] for name in names]))


def renamed(values: Json, name: str, other: str) -> Json:
    return {other if key == name else key: value for key, value in values.items()}


def manifest_before(values: Json) -> Json:
    """A manifest of the version before, or what a shard repeats of it: two keys had other names."""
    config = renamed(values["config"], "regions", "boxes")
    return {**renamed(values, "counts", "numbers"), "config": config}


def lift_manifest(values: Json) -> Json:
    config = renamed(values["config"], "boxes", "regions")
    return {**renamed(values, "numbers", "counts"), "config": config}


def write_before(dataset: Path) -> None:
    """Write a dataset as the version before did."""
    for path in shards_of(dataset):
        table = pq.read_table(path)
        rows = pa.Table.from_pylist([as_before(row) for row in table.to_pylist()])
        pq.write_table(with_origin(rows, json.dumps(manifest_before(origin_of(path)))), path)
    write_json(dataset / "dataset.json", manifest_before(manifest_of(dataset)))
    list_shards(dataset)


@pytest.fixture
def today(tmp_path: Path) -> Path:
    """A dataset of today, in which GrabCut has drawn all masks."""
    folder = copy_of(STORED, tmp_path / "today")
    for path in shards_of(folder):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            row["annotations"] = [{**region, "refined": "grabcut"} for region in row["annotations"]]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    list_shards(folder)
    return folder


@pytest.fixture
def before(today: Path, tmp_path: Path) -> Path:
    folder = copy_of(today, tmp_path / "before")
    write_before(folder)
    return folder


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Raise the schema version: datasets that say 2 are then of the version before."""

    def raise_version() -> None:
        monkeypatch.setattr(schema_versions, "ROWS", replace(ROWS, current=3, steps={2: lift_rows}))
        monkeypatch.setattr(
            schema_versions, "MANIFEST", replace(MANIFEST, current=3, steps={2: lift_manifest})
        )
        monkeypatch.setattr(manifest, "SCHEMA_VERSION", 3)

    return raise_version


@pytest.mark.parametrize("maker", ["another user", "this user"])
def test_a_dataset_of_the_version_before_is_read_by_all_that_reads_one(
    maker: str, today: Path, before: Path, next_version: Callable[[], None], tmp_path: Path
) -> None:
    if maker == "this user":
        for folder in (today, before):
            change_manifest(folder, **sign(manifest_of(folder)))
    images = draw_images(tmp_path / "images", today)
    expected = read_everywhere(today, images, tmp_path / "coco of today")
    next_version()
    reading = read_everywhere(before, images, tmp_path / "coco of before")
    assert reading == expected
    assert reading["rows"][0]["annotations"][0]["refined"] == "grabcut"
    dataset = open_dataset(before)
    assert dataset.run["config"] == manifest_of(today)["config"]
    assert is_own(dataset.run) == (maker == "this user")


def test_a_lost_manifest_of_the_version_before_is_made_again(
    before: Path, next_version: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version()
    monkeypatch.setattr(caption_doubt, "MOST", 0)  # so that a doubt quotes captions
    rows = list(open_dataset(before).rows())
    config = open_dataset(before).manifest["config"]
    (before / "dataset.json").unlink()
    repair(before)
    assert list(open_dataset(before).rows()) == rows
    # Settings that are new have their defaults.
    assert stored_config(open_dataset(before).manifest["config"], ()) == stored_config(config, ())
    examples = open_dataset(before).manifest["caption_doubt"]["examples"]
    assert ["000002.jpg", "a yellow bus and a brown bear"] in examples


def part_of(dataset: Path, number: int, folder: Path) -> Path:
    """A shard of a dataset of today, as if the input had been run in parts of a shard each."""
    part = copy_of(dataset, folder)
    for path in shards_of(part):
        if path.name != f"{number - 1:05d}.parquet":
            path.unlink()
    for log in part.glob("*.jsonl") if number > 1 else ():
        log.unlink()
    rows = rows_of(part)

    def change(manifest: Json) -> None:
        manifest["config"]["input"]["part"] = f"{number}/2"
        manifest["counts"] |= {"read": len(rows), "written": len(rows)}

    change_manifest(part, change)
    list_shards(part)
    return part


def give_id(row: Json, number: int) -> None:
    row["id"] = number
    for region in (*row["annotations"], *row["absent"]):
        region["image_id"] = number


@pytest.fixture
def parts(today: Path, tmp_path: Path) -> list[Path]:
    return [part_of(today, number, tmp_path / f"part {number}") for number in (1, 2)]


@pytest.mark.parametrize("has_collision", [False, True])
def test_parts_of_the_version_before_are_merged(
    has_collision: bool,
    today: Path,
    parts: list[Path],
    next_version: Callable[[], None],
    tmp_path: Path,
) -> None:
    images = draw_images(tmp_path / "images", today)
    expected = read_everywhere(today, images, tmp_path / "coco of today")
    if has_collision:  # of an image of the second part with one of the first
        change_rows(shards_of(parts[1])[0], lambda rows: give_id(rows[0], expected["rows"][0]["id"]))
    for part in parts:
        write_before(part)
        change_manifest(part, lambda manifest: manifest["run"].update(phrasebox_version="0.0.9"))
    next_version()
    merge(parts, tmp_path / "out")
    reading = read_everywhere(tmp_path / "out", images, tmp_path / "coco of before")
    assert reading == expected
    merged = manifest_of(tmp_path / "out")
    assert merged["schema_version"] == 3
    before = {"phrasebox_version": "0.0.9", "schema_version": 2}
    assert merged["run"] | before == merged["run"], "so that it gets no rows of another version"
    assert merge(parts, tmp_path / "out") is None, "a second time there is nothing to do"


def test_parts_of_two_versions_are_refused_in_one_line(
    parts: list[Path], next_version: Callable[[], None], tmp_path: Path
) -> None:
    """Their rows may differ, whatever their columns are."""

    later = {"schema_version": 3, "phrasebox_version": "0.2.0"}
    write_before(parts[0])
    for path in shards_of(parts[1]):
        origin = {**origin_of(path), **later}
        pq.write_table(with_origin(pq.read_table(path), json.dumps(origin)), path)
    change_manifest(parts[1], lambda manifest: manifest["run"].update(later), **later)
    list_shards(parts[1])
    next_version()
    with expect_error(InputError):
        merge(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_of_a_patch_release_are_merged(parts: list[Path], tmp_path: Path) -> None:
    change_manifest(parts[1], lambda manifest: manifest["run"].update(phrasebox_version="0.1.9"))
    assert merge(parts, tmp_path / "out") is not None
    assert len(open_dataset(tmp_path / "out")) == 5


def test_a_dataset_of_a_later_version_is_refused_and_stays_as_it_is(today: Path) -> None:
    """Whatever else is in it: nobody knows."""
    path = shards_of(today)[0]
    origin = {**origin_of(path), "schema_version": 3}
    pq.write_table(with_origin(pa.table({"a": [1]}), json.dumps(origin)), path)
    change_manifest(
        today, schema_version=3, phrasebox_version="0.2.0", shards="in another file", config=None
    )
    files = sorted(today.rglob("*"))
    for opened in (open_dataset, open_any_dataset):
        with expect_error(SchemaError):
            opened(today)
    for problem in validate(today):
        assert_message(problem)
    assert sorted(today.rglob("*")) == files, "no shard is noted as damaged"


def test_a_lost_manifest_of_a_later_version_is_not_made_again(today: Path) -> None:
    for path in shards_of(today):
        origin = {**origin_of(path), "schema_version": 3, "phrasebox_version": "0.2.0"}
        pq.write_table(with_origin(pq.read_table(path), json.dumps(origin)), path)
    (today / "dataset.json").unlink()
    with expect_error(SchemaError):
        repair(today)
    assert not (today / "dataset.json").exists()


def test_a_shard_of_a_later_version_does_not_count_as_one_of_today(today: Path) -> None:
    path = shards_of(today)[1]
    origin = {**origin_of(path), "schema_version": 3}
    pq.write_table(with_origin(pq.read_table(path), json.dumps(origin)), path)
    list_shards(today)
    with expect_error(InputError):
        list(open_dataset(today).rows())


def test_an_unfinished_run_of_a_later_version_is_refused(today: Path) -> None:
    run = manifest_of(today)["run"]
    (today / "dataset.json").unlink()
    (today / ".phrasebox").mkdir()
    (today / ".phrasebox" / "run.json").write_text(json.dumps({**run, "schema_version": 3}))
    for opened in (open_dataset, open_any_dataset):
        with expect_error(SchemaError):
            opened(today)


KEY: Json = {"annotation_id": 7, "phrase": "a dog", "bbox": [1.0, 2.0, 30.5, 4.0]}


def store_review(folder: Path) -> None:
    append_review(folder, Review.model_validate({**KEY, "reviewer": "ann", "answer": "right"}))


def store_mark(folder: Path) -> None:
    append_marks(folder, {"a": "good"})


def answers_in(folder: Path) -> list[Any]:
    return [*read_reviews(folder).majority_answers().values()]


Store = Callable[[Path], None]
Read = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("kind", "store", "read", "expected"),
    [(Review, store_review, answers_in, ["right"]), (Mark, store_mark, read_marks, {"a": "good"})],
)
class TestLines:
    """Each of the two logs."""

    def lines(self, folder: Path) -> Path:
        return next(folder.glob("*.jsonl"))

    def test_a_line_without_a_version_is_of_the_first(
        self, kind: type[LogLine], store: Store, read: Read, expected: Any, tmp_path: Path
    ) -> None:
        store(tmp_path)
        path = self.lines(tmp_path)
        stored = read_lines(path)
        assert [line.pop("version") for line in stored] == [1]
        write_lines(path, stored)
        assert read(tmp_path) == expected

    def test_lines_of_the_version_before_are_lifted(
        self,
        kind: type[LogLine],
        store: Store,
        read: Read,
        expected: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A made-up version 1, in which all texts were upper case. Lines of both are in one file."""

        def lift(line: Json) -> Json:
            return {
                key: value.lower() if isinstance(value, str) and key != "time" else value
                for key, value in line.items()
            }

        store(tmp_path)
        path = self.lines(tmp_path)
        stored = read_lines(path)
        upper = [
            {key: value.upper() if isinstance(value, str) else value for key, value in line.items()}
            for line in stored
        ]
        write_lines(path, upper)
        assert read(tmp_path) != expected
        monkeypatch.setattr(kind, "form", replace(kind.form, current=2, steps={1: lift}))
        assert read(tmp_path) == expected
        store(tmp_path)
        assert [line["version"] for line in read_lines(path)] == [1, 2]
        assert read(tmp_path) == expected

    def test_lines_of_a_later_version_are_refused(
        self, kind: type[LogLine], store: Store, read: Read, expected: Any, tmp_path: Path
    ) -> None:
        """To skip them would take an answer for the one before it."""
        store(tmp_path)
        path = self.lines(tmp_path)
        write_lines(path, [*read_lines(path), {"version": kind.form.current + 1, "later": True}])
        with expect_error(InputError):
            read(tmp_path)

    @pytest.mark.parametrize("version", [0, "1", None, 1.5, [1]])
    def test_a_line_with_no_version_at_all_is_skipped(
        self, version: Any, kind: type[LogLine], store: Store, read: Read, expected: Any, tmp_path: Path
    ) -> None:
        store(tmp_path)
        path = self.lines(tmp_path)
        write_lines(path, [*read_lines(path), {**read_lines(path)[0], "version": version}])
        assert read(tmp_path) == expected
