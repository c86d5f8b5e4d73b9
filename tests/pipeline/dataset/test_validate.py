"""A sound dataset has no problems; each single damage is found and named."""

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.dataset.validate import validate
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.masks import encode_mask
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.contract.schema import SCHEMA_VERSION, ColumnOption
from tests.build.datasets import Json, change_manifest, change_rows, copy_of, manifest_of
from tests.build.files import read_json, write_json
from tests.messages import assert_message, expect_error
from tests.stages.write.rows import mixed, write_shards
from tests.synthetic import count

Rows = list[Json]


def make_dataset(folder: Path, options: Collection[ColumnOption] = ("heat_maps",)) -> Path:
    """Nine rows in three shards, categories, and as much of a manifest as is checked."""
    write_shards(mixed(), folder / "data", options)
    count(folder)
    rows = {
        "read": 9,
        "written": 9,
        "annotated": 6,
        "without_regions": 1,
        "without_phrases": 1,
        "failed": 2,
    }
    counts: Json = {**rows, "phrases": 12, "regions": 9, "absent": 0, "categories": 2, "files": 3}
    counts["failed_by_reason"] = {"bad_image": 1, "missing_image": 1}
    manifest = {"format": "phrasebox", "schema_version": SCHEMA_VERSION, "counts": counts}
    write_json(folder / "dataset.json", manifest)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return copy_of(sound, tmp_path)


@pytest.mark.parametrize("options", [[], ["image"], ["heat_maps"], ["heat_maps", "image"]])
def test_a_sound_dataset_has_no_problems(options: list[ColumnOption], tmp_path: Path) -> None:
    assert list(validate(make_dataset(tmp_path, options))) == []


def test_a_finished_run_has_no_problems(inline_dataset: Path, synthetic_dataset: Path) -> None:
    assert [*validate(inline_dataset), *validate(synthetic_dataset)] == []


def assert_problems(dataset: Path) -> None:
    """A dataset has problems, and they are said as `messages.json` has them."""
    problems = list(validate(dataset))
    assert problems
    for problem in problems:
        assert_message(problem)


def damage_rows(dataset: Path, change: Callable[[Rows], None], file: str = "data/00000.parquet") -> None:
    change_rows(dataset / file, change)


def first(rows: Rows) -> Json:
    """The first annotation: "red car" in row 0."""
    return rows[0]["annotations"][0]


def put(name: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: first(rows).update({name: value})


def empty_mask(rows: Rows) -> None:
    first(rows).update(
        area=0, segmentation={"size": [30, 40], "counts": encode_mask(np.zeros((30, 40), bool)).counts}
    )


def test_a_learned_box_may_differ_from_that_of_the_mask(dataset: Path) -> None:
    damage_rows(dataset, lambda rows: first(rows).update(bbox=[1.0, 2.0, 30.0, 20.0], bbox_of="learned"))
    assert list(validate(dataset)) == []


DOGS = {"phrase": "two dogs", "head": "dog", "caption_index": 0, "span": [20, 28]}
FAULT = {"error": "bad_image", "error_detail": "no"}
ABSENT_DOGS: Json = {**DOGS, "presence": 0.25, "similarity": 0.125}


def absent(**changes: Any) -> Callable[[Rows], None]:
    return row(absent=[{**ABSENT_DOGS, **changes}])


def row(**changes: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update(changes)


def entry(name: str, number: int, **changes: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0][name][number].update(changes)


def mask(**changes: Any) -> Callable[[Rows], None]:
    return lambda rows: first(rows)["segmentation"].update(changes)


ROWS: dict[str, Callable[[Rows], None]] = {
    "id of another sample": row(id=7),
    "annotation of another image": put("image_id", 5),
    "box moved": put("bbox", [1.0, 3.0, 10.0, 12.0]),
    "box outside": put("bbox", [35.0, 3.0, 10.0, 12.0]),
    "learned box outside": lambda rows: first(rows).update(bbox=[35.0, 3.0, 10.0, 12.0], bbox_of="learned"),
    "box of nothing": put("bbox_of", "luck"),
    "area": put("area", 119),
    "mask of another size": mask(size=[40, 30]),
    "mask damaged": mask(counts="0é"),
    "mask empty": empty_mask,
    "span of one": put("span", [3]),
    "another caption": put("caption_index", 1),
    "phrase of another category": put("category_id", 9),
    "crowd": put("iscrowd", 1),
    "score": put("score", 1.5),
    "absent with a region": absent(),
    "absent of a fault": row(**FAULT, annotations=[], absent=[ABSENT_DOGS]),
    "unknown error": row(error="odd", error_detail="no"),
    "error and annotations": row(**FAULT),
    "captions missing": row(captions=None),
    "count of phrases": row(phrase_count=0),
    "phrase without a head": entry("phrases", 1, head=None),
    "heat map lost": lambda r: r[0]["heat_maps"].pop(),
    "heat map cut": entry("heat_maps", 0, levels=b"abc"),
}


@pytest.mark.parametrize("name", ROWS)
def test_damaged_rows(name: str, dataset: Path) -> None:
    damage_rows(dataset, ROWS[name])
    assert_problems(dataset)


def test_lost_rows_and_shards(dataset: Path) -> None:
    damage_rows(dataset, lambda rows: rows.__delitem__(0))
    (dataset / "data" / "00001.parquet").unlink()
    assert_problems(dataset)
    shutil.rmtree(dataset / "data")
    assert_problems(dataset)


def test_every_count_of_the_manifest(dataset: Path) -> None:
    names = [*manifest_of(dataset)["counts"]]
    change_manifest(dataset, lambda manifest: manifest["counts"].update(dict.fromkeys(names, 77)))
    assert_problems(dataset)
    change_manifest(dataset, counts={})
    assert_problems(dataset)


def test_a_damaged_or_missing_manifest(dataset: Path) -> None:
    path = dataset / "dataset.json"
    other = json.dumps({**read_json(path), "schema_version": 99})
    for content in ("", "[]", '{"counts": []}', "{}", "\udcff", other):
        path.write_text(content, errors="surrogateescape")
        assert_problems(dataset)
    path.unlink()
    assert_problems(dataset)


COLUMNS: dict[str, Callable[[Any], Any]] = {
    "type": lambda t: t.set_column(t.schema.get_field_index("width"), "width", t["width"].cast(pa.int64())),
    "unknown": lambda t: t.append_column("note", pa.array(["x"] * t.num_rows)),
    "captions": lambda t: t.drop_columns(["captions"]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_another_form(name: str, dataset: Path) -> None:
    """The other shards are still checked, and have no problem."""
    path = dataset / "data" / "00000.parquet"
    pq.write_table(COLUMNS[name](pq.read_table(path)), path)
    assert_problems(dataset)


def test_no_dataset_at_all(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("{}")
    for name in ("nowhere", "captions.jsonl", "captions.jsonl/out", "."):
        with expect_error(InputError):
            list(validate(tmp_path / name))


CATEGORIES: dict[str, Callable[[Rows], None]] = {
    "more": lambda rows: rows.append({**rows[0], "id": stable_id("cat"), "name": "cat"}),
    "count": lambda rows: rows[0].update(count=99),
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_damaged_categories(name: str, dataset: Path) -> None:
    damage_rows(dataset, CATEGORIES[name], "categories.parquet")
    assert_problems(dataset)


@pytest.mark.parametrize("name", ["categories.parquet", "data/00001.parquet"])
def test_truncated_files(name: str, dataset: Path) -> None:
    content = (dataset / name).read_bytes()
    for size in (0, len(content) // 2, len(content) - 9):
        (dataset / name).write_bytes(content[:size])
        assert [problem for problem in validate(dataset) if f"{name}: damaged" in problem]
    (dataset / name).unlink()
    assert_problems(dataset)


def test_images_that_are_not_there(tmp_path: Path) -> None:
    """With embedded images a row without an error has its image."""
    dataset = make_dataset(tmp_path, ["heat_maps", "image"])
    damage_rows(dataset, lambda rows: rows[0].update(image=None))
    assert_problems(dataset)
