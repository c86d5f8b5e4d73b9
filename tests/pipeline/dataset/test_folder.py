"""A dataset's folder: what is one, what is none, and its rows as tables."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.folder import (
    IMAGE_BATCH_ROWS,
    MARKS_FILE,
    open_any_dataset,
    open_dataset,
    read_marks,
    write_marks,
)
from pipeline.dataset.selection import REGION_COLUMNS
from stages.contract.errors import ConfigError, InputError, SchemaError
from stages.contract.schema import DATASET_SCHEMA, dataset_schema
from tests.build.datasets import change_manifest, copy_of
from tests.messages import expect_error
from tests.pipeline.dataset.plain import CONDITIONS, marks_of, regions_of
from tests.synthetic import write_synthetic


@pytest.fixture
def folder(synthetic_dataset: Path, tmp_path: Path) -> Path:
    """A copy to be changed: 500 rows in shards of 180."""
    return copy_of(synthetic_dataset, tmp_path)


@pytest.fixture(scope="module")
def with_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(
        tmp_path_factory.mktemp("images") / "dataset", 80, rows_per_file=50, embed_images=True
    )


def test_a_finished_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a relative path; other files do not matter, and the size needs no look into the shards."""
    (folder / "data" / ".00003.parquet.tmp").touch()
    (folder / "data" / "notes.txt").touch()
    monkeypatch.chdir(folder.parent)
    dataset = open_dataset(Path("dataset"))
    assert dataset.path == folder
    assert dataset.is_finished
    assert [path.name for path in dataset.shards] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert not dataset.has_images
    assert dataset.columns == tuple(DATASET_SCHEMA.names)
    regions = dataset.manifest["counts"]["regions"]
    with monkeypatch.context() as patched:
        patched.setattr(
            "pipeline.dataset.folder.open_shard", lambda path: pytest.fail("a shard was opened")
        )
        assert repr(dataset) == f"Dataset {folder}: 500 rows, {regions:,} regions, 3 shards"
        assert len(dataset) == 500
    (folder / "dataset.json").unlink()
    unfinished = open_any_dataset(folder)
    assert repr(unfinished) == f"Dataset {folder}: 3 shards"
    assert len(unfinished) == 500


def test_rows_in_the_order_of_the_shards(folder: Path) -> None:
    rows = list(open_dataset(folder).rows())
    assert [row["sample_id"] for row in rows] == [f"s{number:09d}" for number in range(500)]
    assert rows == [
        row for n in range(3) for row in pq.read_table(folder / "data" / f"0000{n}.parquet").to_pylist()
    ]
    change_manifest(folder, lambda manifest: manifest["counts"].update(written=0))
    assert open_dataset(folder), "also without rows"
    assert not len(open_dataset(folder))


def test_images(with_images: Path) -> None:
    """Are only read where they are asked for, and then a few at a time."""
    dataset = open_dataset(with_images)
    assert dataset.has_images
    assert dataset.columns == (*DATASET_SCHEMA.names, "image")
    assert "image" not in next(dataset.rows())
    tables = list(dataset.tables(dataset.columns))
    assert [table.num_rows for table in tables] == [IMAGE_BATCH_ROWS, 18, 30]
    assert tables[0].schema.equals(dataset_schema(["image"]))


def test_regions_in_rows_of_their_own(folder: Path) -> None:
    """The columns that a condition knows, and any field of the annotation."""
    rows = list(open_dataset(folder).rows())
    write_marks(folder, marks_of(rows))
    dataset = open_dataset(folder)
    assert len(dataset) == 500
    plain = [region for row in rows for region in regions_of(row, marks_of(rows))]
    whole = dataset.regions()
    assert whole.column_names == [*REGION_COLUMNS.names, "bbox", "group"]
    for name in whole.column_names:
        assert whole[name].to_pylist() == [region[name] for region in plain], name
    for where in ("w > h", "phrase_count <> region_count", "mark = 'good'"):
        table = dataset.regions(where, ["id", "region_count", "phrase"], min_score=0.3)
        chosen = [r for r in plain if CONDITIONS[where](r) and r["score"] >= np.float32(0.3)]
        assert table.to_pylist() == [
            {name: r[name] for name in ("id", "region_count", "phrase")} for r in chosen
        ]
        assert 0 < len(chosen) < len(plain)
    masks = [a["segmentation"] for row in rows for a in row["annotations"]]
    assert dataset.regions(columns=["segmentation"])["segmentation"].to_pylist() == masks
    assert dataset.regions("score > 2", ["phrase"]).to_pydict() == {"phrase": []}
    with expect_error(ConfigError):
        dataset.regions(columns=["fraze"])
    with expect_error(ConfigError):
        dataset.regions("hed = 'dog'")


def test_a_sample_by_its_id(with_images: Path) -> None:
    """With its image."""
    dataset = open_dataset(with_images)
    rows = list(dataset.rows(dataset.columns))
    for number in (0, 31, 32, 49, 50, 79):
        assert dataset.sample(rows[number]["sample_id"]) == rows[number]
    with expect_error(InputError):
        dataset.sample("nobody")


def test_an_unfinished_dataset(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    with expect_error(InputError):
        open_dataset(folder)
    (folder / ".phrasebox").mkdir()
    (folder / ".phrasebox" / "run.json").write_text('{"config": {"input": {}}, "model_fingerprint": "a"}')
    with expect_error(InputError):
        open_dataset(folder)
    dataset = open_any_dataset(folder)
    assert not dataset.is_finished
    assert dataset.manifest == {}
    assert dataset.run == {"config": {"input": {}}, "model_fingerprint": "a"}
    assert len(list(dataset.rows(["id"]))) == 500


def test_images_of_an_unfinished_dataset(with_images: Path, tmp_path: Path) -> None:
    """Known from a shard that is whole."""
    folder = copy_of(with_images, tmp_path)
    (folder / "dataset.json").unlink()
    assert open_any_dataset(folder).has_images
    (folder / "data" / "00000.parquet").write_bytes(b"PAR1 half")
    assert open_any_dataset(folder).has_images
    (folder / "data" / "00001.parquet").write_bytes(b"PAR1 half")
    assert not open_any_dataset(folder).has_images


def test_no_dataset(tmp_path: Path) -> None:
    with expect_error(InputError):
        open_dataset(tmp_path / "none")
    (tmp_path / "file").touch()
    with expect_error(InputError):
        open_dataset(tmp_path / "file")
    for opened in (open_dataset, open_any_dataset):
        with expect_error(InputError):
            opened(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema_version": 1}',
        '{"config": {}}',
        '{"config": {}, "schema_version": 99}',
    ],
)
def test_damaged_manifests(content: str, folder: Path) -> None:
    """Also where the run need not have finished: a manifest is written at its end."""
    (folder / "dataset.json").write_text(content, errors="surrogateescape")
    for opened in (open_dataset, open_any_dataset):
        with expect_error(InputError, SchemaError):
            opened(folder)


def test_damaged_shards(folder: Path) -> None:
    """Are said when it is their turn."""
    shard = folder / "data" / "00001.parquet"
    dataset = open_dataset(folder)
    content = shard.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 9, None):
        shard.unlink() if size is None else shard.write_bytes(content[:size])
        rows = dataset.rows(["id"])
        for _ in range(180):
            next(rows)
        with expect_error(InputError):
            next(rows)


def test_marks_that_are_written_are_read(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == {}
    marks = {"b": "bad", "a": "good", "ąé 乌龟 🐢": "good", 'quote " and \\ and\nline': "bad", "": "bad"}
    write_marks(tmp_path, marks)
    assert read_marks(tmp_path) == marks
    write_marks(tmp_path, {"b": "bad", "ä": "good", "a": "good"})
    assert (tmp_path / MARKS_FILE).read_text(
        encoding="utf-8"
    ) == '{\n"a": "good",\n"b": "bad",\n"ä": "good"\n}\n'
    write_marks(tmp_path, {})
    assert read_marks(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == [MARKS_FILE], "nothing temporary stays"


@pytest.mark.parametrize("content", ["", "[]", '{"a": "great"}', "\udcff"])
def test_damaged_marks(content: str, tmp_path: Path) -> None:
    (tmp_path / MARKS_FILE).write_text(content, errors="surrogateescape")
    with expect_error(InputError):
        read_marks(tmp_path)
    (tmp_path / "other" / MARKS_FILE).mkdir(parents=True)
    with expect_error(InputError):
        read_marks(tmp_path / "other")
