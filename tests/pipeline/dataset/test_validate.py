"""A sound dataset has no problems; each single damage is found and named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.validate import validate
from stages.contract.errors import InputError
from stages.contract.masks import decode_mask, encode_mask
from stages.contract.records import Rle, stable_id
from stages.contract.schema import SCHEMA_VERSION
from tests.pipeline.changed import change_manifest
from tests.stages.write.rows import mixed, write_shards
from tests.synthetic import count

Rows = list[dict[str, Any]]


def make_dataset(folder: Path, *, embed_images: bool = False, heat_maps: bool = True) -> Path:
    """Nine rows in three shards, categories, and as much of a manifest as is checked."""
    write_shards(mixed(), folder / "data", embed_images=embed_images, heat_maps=heat_maps)
    count(folder)
    rows = {"read": 9, "written": 9, "annotated": 6, "without_regions": 1, "without_phrases": 1, "failed": 2}
    counts: dict[str, Any] = {**rows, "phrases": 12, "regions": 9, "absent": 0, "categories": 2, "files": 3}
    counts["failed_by_reason"] = {"bad_image": 1, "missing_image": 1}
    manifest = {"format": "phrasebox", "schema_version": SCHEMA_VERSION, "counts": counts}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "dataset"))


@pytest.mark.parametrize("embed_images", [False, True])
@pytest.mark.parametrize("heat_maps", [False, True])
def test_a_sound_dataset_has_no_problems(embed_images: bool, heat_maps: bool, tmp_path: Path) -> None:
    assert list(validate(make_dataset(tmp_path, embed_images=embed_images, heat_maps=heat_maps))) == []


def test_a_finished_run_has_no_problems(inline_dataset: Path, synthetic_dataset: Path) -> None:
    assert [*validate(inline_dataset), *validate(synthetic_dataset)] == []


def change_rows(dataset: Path, change: Callable[[Rows], None], file: str = "data/00000.parquet") -> None:
    """Read a file's rows, change them, write them back."""
    path = dataset / file
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def first(rows: Rows) -> dict[str, Any]:
    """The first annotation: "red car" in row 0."""
    return rows[0]["annotations"][0]


def put(name: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: first(rows).update({name: value})


def flip_pixel(rows: Rows) -> None:
    """One pixel inside the mask's box no longer belongs to it."""
    coded = first(rows)["segmentation"]
    changed = decode_mask(Rle(size_hw=tuple(coded["size"]), counts=coded["counts"])).copy()
    changed[8, 5] = False
    coded["counts"] = encode_mask(changed).counts


def empty_mask(rows: Rows) -> None:
    first(rows).update(area=0, segmentation={"size": [30, 40], "counts": encode_mask(np.zeros((30, 40), bool)).counts})


DOGS = {"phrase": "two dogs", "head": "dog", "caption_index": 0, "span": [20, 28]}
FAULT = {"error": "bad_image", "error_detail": "no"}
ABSENT_DOGS: dict[str, Any] = {**DOGS, "presence": 0.25, "similarity": 0.125}


def absent(**changes: Any) -> Callable[[Rows], None]:
    return row(absent=[{**ABSENT_DOGS, **changes}])


def row(**changes: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update(changes)


def entry(name: str, number: int, **changes: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0][name][number].update(changes)


def mask(**changes: Any) -> Callable[[Rows], None]:
    return lambda rows: first(rows)["segmentation"].update(changes)


ROWS: dict[str, tuple[Callable[[Rows], None], str]] = {
    "id of another sample": (row(id=7), r"row 0 \('s0'\): id 7 is not the hash of its sample_id"),
    "sample twice": (lambda r: r.__setitem__(1, r[0]), r"image id \d+ occurs 2 times"),
    "annotation twice": (lambda r: r[0]["annotations"].append(first(r)), r"annotation id \d+ occurs 2 times"),
    "annotation of another image": (put("image_id", 5), r"row 0 \('s0'\): annotation \d+: image_id 5 is not the row's"),
    "box moved": (put("bbox", [1.0, 3.0, 10.0, 12.0]), r"box \[1.0, .*\] but the mask's box is \[0.0, 3.0, 10.0, 12"),
    "box outside": (put("bbox", [35.0, 3.0, 10.0, 12.0]), r"leaves the 40x30 image"),
    "box empty": (put("bbox", [0.0, 3.0, 0.0, 12.0]), r"box \[0.0, 3.0, 0.0, 12.0\] is empty"),
    "box of three": (put("bbox", [0.0, 3.0, 10.0]), r"bbox \[0.0, 3.0, 10.0\] has not four numbers"),
    "box missing": (put("bbox", None), r"bbox is null"),
    "box not a number": (put("bbox", [float("nan"), 3.0, 10.0, 12.0]), r"is empty or leaves"),
    "area": (put("area", 119), r"area 119 but the mask has 120 pixels"),
    "pixel flipped": (flip_pixel, r"area 120 but the mask has 119 pixels"),
    "mask of another size": (mask(size=[40, 30]), r"mask size \[40, 30\] is not \[height, width\]"),
    "mask damaged": (mask(counts="0é"), "mask cannot be decoded"),
    "mask too short": (mask(counts="3"), "mask cannot be decoded"),
    "mask with runs that go back": (mask(counts="1O0"), "mask cannot be decoded"),
    "mask empty": (empty_mask, r"but the mask's box is \[0.0, 0.0, 0.0, 0.0\]"),
    "mask missing": (put("segmentation", None), r"segmentation is null"),
    "span shifted": (put("span", [1, 13]), r"span says 'he  Red car ' but the phrase is 'red car'"),
    "span too long": (put("span", [5, 28]), r"span says .* but the phrase is 'red car'"),
    "span outside": (put("span", [20, 99]), r"span \[20, 99\) leaves the caption"),
    "span empty": (put("span", [3, 3]), r"span \[3, 3\) leaves the caption"),
    "span of one": (put("span", [3]), r"span \[3\] has not two numbers"),
    "another caption": (put("caption_index", 1), r"caption_index 1 but there are 1 captions"),
    "phrase of another category": (put("category_id", 9), r"category_id is not the hash of its phrase"),
    "crowd": (put("iscrowd", 1), r"iscrowd is 1"),
    "score": (put("score", 1.5), r"score 1.5 outside 0 .. 1"),
    "score not a number": (put("score", float("nan")), r"score nan outside 0 .. 1"),
    "similarity": (put("similarity", -2.0), r"similarity -2.0 outside -1"),
    "presence": (put("presence", 1.5), r"presence 1.5 outside 0 .. 1"),
    "group": (put("group", -1), r"group -1 is negative"),
    "absent outside": (absent(presence=-1.0), r"absent\[0\] \('two dogs'\): presence -1.0 outside 0 .. 1"),
    "absent elsewhere": (absent(span=[0, 12]), r"absent\[0\] \('two dogs'\): span says 'The  Red car'"),
    "absent with a region": (absent(), r"absent phrase 'two dogs': it has an annotation"),
    "absent missing": (absent(presence=None), r"absent\[0\] \('two dogs'\): presence is null"),
    "absent of a fault": (row(**FAULT, annotations=[], absent=[ABSENT_DOGS]), r"has an error and absent phrases"),
    "annotation id 0": (put("id", 0), r"annotation 0: id outside 1"),
    "unknown error": (row(error="odd", error_detail="no"), r"error: expected a reason from"),
    "error without detail": (row(error="bad_image"), "has an error without a detail"),
    "detail without error": (row(error_detail="no"), "has the detail of an error but no error"),
    "error and annotations": (row(**FAULT), r"has an error and annotations"),
    "captions missing": (row(captions=None), r"row 0 \('s0'\): captions is null"),
    "annotations missing": (row(annotations=None), r"row 0 \('s0'\): annotations is null"),
    "id missing": (row(id=None), r"row 0 \('s0'\): id is null"),
    "width missing": (row(width=None), r"row 0 \('s0'\): width is null"),
    "count of phrases": (row(phrase_count=0), r"2 annotations but no phrases"),
    "phrases missing": (row(phrases=None), r"phrases is null"),
    "phrase lost": (lambda r: r[0]["phrases"].pop(), r"phrase_count is 2 but there are 1 phrases"),
    "phrase without a head": (entry("phrases", 1, head=None), r"phrases\[1\] \('two dogs'\): head is null"),
    "phrase elsewhere": (entry("phrases", 1, span=[1, 3]), r"phrases\[1\] \('two dogs'\): span says 'he' but the ph"),
    "heat map lost": (lambda r: r[0]["heat_maps"].pop(), r"the heat maps are of \['red car'\], not of the phrases"),
    "heat map cut": (entry("heat_maps", 0, levels=b"abc"), r"heat map of 'red car': 3 levels on a grid of \[2, 2\]"),
    "heat map without a size": (entry("heat_maps", 0, size=[4]), r"4 levels on a grid of \[4\]"),
}


@pytest.mark.parametrize("name", ROWS)
def test_damaged_rows(name: str, dataset: Path) -> None:
    damage, message = ROWS[name]
    change_rows(dataset, damage)
    problems = list(validate(dataset))
    matches = [problem for problem in problems if re.search(message, problem)]
    assert matches, problems
    assert all("\n" not in problem for problem in problems)
    if "row 0" in message:
        assert str(dataset / "data" / "00000.parquet") in matches[0]


def test_lost_rows_and_shards(dataset: Path) -> None:
    change_rows(dataset, lambda rows: rows.__delitem__(0))
    (dataset / "data" / "00001.parquet").unlink()
    problems = "\n".join(validate(dataset))
    for words in ("counts.written is 9 but the shards hold 4", "counts.read is 9 but the shards hold 4"):
        assert words in problems
    assert "counts.files is 3 but the shards hold 2" in problems
    assert "categories.parquet: does not agree with the shards" in problems


COUNTS = ["read", "written", "annotated", "without_regions", "without_phrases", "failed", "phrases", "regions"]


def test_every_count_of_the_manifest(dataset: Path) -> None:
    names = [*COUNTS, "categories", "absent", "files", "failed_by_reason"]
    for value in (77, None):
        change_manifest(dataset, lambda manifest, value=value: manifest["counts"].update(dict.fromkeys(names, value)))
        problems = list(validate(dataset))
        assert len(problems) == len(names)
        for name in names:
            assert any(f"counts.{name} is {value} but the shards hold " in problem for problem in problems), name
    change_manifest(dataset, lambda manifest: [manifest["counts"].pop(name) for name in names])
    texts = {problem.partition(": ")[2] for problem in validate(dataset)}
    assert texts == {f"counts.{name} is missing" for name in names}


def test_a_damaged_or_missing_manifest(dataset: Path) -> None:
    path = dataset / "dataset.json"
    other = json.dumps({**json.loads(path.read_text()), "schema_version": 99})
    for content, words in (
        *((text, "dataset.json") for text in ("", "{", "[]", "3", '{"counts": []}', "{}", "\udcff")),
        (other, f"schema version 99, this phrasebox reads {SCHEMA_VERSION}"),
        (None, "dataset.json: missing; the run did not finish"),
    ):
        path.unlink() if content is None else path.write_text(content, errors="surrogateescape")
        problems = list(validate(dataset))
        assert problems
        assert all(words in problem for problem in problems)


def without_scores(table: Any) -> Any:
    kind = table.schema.field("annotations").type.value_type
    fields = pa.struct([field for field in kind if field.name != "score"])
    rows = [[{f.name: a[f.name] for f in fields} for a in cell] for cell in table["annotations"].to_pylist()]
    position = table.schema.get_field_index("annotations")
    return table.set_column(position, "annotations", pa.array(rows, pa.list_(fields)))


COLUMNS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "field": (without_scores, "column annotations: expected .*, got .*"),
    "type": (
        lambda t: t.set_column(t.schema.get_field_index("width"), "width", t["width"].cast(pa.int64())),
        "column width: expected int32, got int64",
    ),
    "unknown": (lambda t: t.append_column("note", pa.array(["x"] * t.num_rows)), "unknown column note"),
    **{
        name: (lambda t, name=name: t.drop_columns([name]), f"no column {name}")
        for name in ("captions", "annotations", "phrase_count", "error", "error_detail", "heat_maps")
    },
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_another_form(name: str, dataset: Path) -> None:
    """The other shards are still checked, and have no problem."""
    path = dataset / "data" / "00000.parquet"
    change, words = COLUMNS[name]
    pq.write_table(change(pq.read_table(path)), path)
    [problem] = validate(dataset)
    assert re.fullmatch(f".*00000.parquet: {words}", problem)


def test_a_truncated_shard(dataset: Path) -> None:
    path = dataset / "data" / "00001.parquet"
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:size])
        assert any("00001.parquet: damaged or not a phrasebox shard" in problem for problem in validate(dataset))


def test_a_shard_with_flipped_bytes_raises_nothing(dataset: Path) -> None:
    """Pages are compressed: a flipped byte is an unreadable page or another value, and never a traceback."""
    path = dataset / "data" / "00000.parquet"
    content = path.read_bytes()
    for position in range(4, len(content) - 8, max(1, len(content) // 20)):
        changed = bytearray(content)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        list(validate(dataset))


def test_no_shards(dataset: Path, tmp_path: Path) -> None:
    shutil.rmtree(dataset / "data")
    assert any("data: no Parquet files" in problem for problem in validate(dataset))
    (tmp_path / "begun" / ".phrasebox").mkdir(parents=True)
    (tmp_path / "begun" / ".phrasebox" / "run.json").write_text("{}")
    assert "dataset.json: missing; the run did not finish" in "\n".join(validate(tmp_path / "begun"))


def test_no_dataset_at_all(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("{}")
    expected = r"expected the folder that a run wrote \(its output\.path\)$"
    for name, words in (
        ("nowhere", "no such folder: .*nowhere$"),
        ("captions.jsonl", f"captions.jsonl is a file: {expected}"),
        ("captions.jsonl/out", "no such folder: "),
        (".", rf"is not a dataset: no dataset\.json in it; {expected}"),
    ):
        with pytest.raises(InputError, match=words):
            list(validate(tmp_path / name))


CATEGORIES: dict[str, tuple[Callable[[Rows], None], str]] = {
    "missing": (lambda rows: rows.pop(), "does not agree with the shards"),
    "more": (lambda rows: rows.append({**rows[0], "id": stable_id("cat"), "name": "cat"}), "does not agree"),
    "count": (lambda rows: rows[0].update(count=99), "does not agree with the shards"),
    "id": (lambda rows: rows[0].update(id=3), "does not agree with the shards"),
    "twice": (lambda rows: rows.append(rows[0]), "does not agree with the shards"),
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_damaged_categories(name: str, dataset: Path) -> None:
    damage, message = CATEGORIES[name]
    change_rows(dataset, damage, "categories.parquet")
    problems = list(validate(dataset))
    assert any(re.search(rf"categories\.parquet: .*{message}", problem) for problem in problems), problems


def test_categories_that_are_no_table(dataset: Path) -> None:
    path = dataset / "categories.parquet"
    other = pa.table({"id": [1]})
    for damage in (lambda: path.write_bytes(b"PAR1 half"), lambda: pq.write_table(other, path), path.unlink):
        damage()
        [problem] = validate(dataset)
        assert "categories.parquet: " in problem


def test_images_that_are_not_there(tmp_path: Path) -> None:
    """With embedded images a row without an error has its image."""
    dataset = make_dataset(tmp_path, embed_images=True)
    change_rows(dataset, lambda rows: rows[0].update(image=None))
    [problem] = validate(dataset)
    assert problem.endswith("row 0 ('s0'): no error and no image")
