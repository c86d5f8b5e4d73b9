"""A dataset's folder: what is one, what is none, and its rows as tables."""

from pathlib import Path

import numpy as np
import pytest

from phrasebox.pipeline.dataset.folder import IMAGE_BATCH_ROWS, open_any_dataset, open_dataset
from phrasebox.pipeline.dataset.marks import append_marks
from phrasebox.pipeline.dataset.selection import REGION_COLUMNS
from phrasebox.stages.contract.errors import ConfigError, InputError, SchemaError
from phrasebox.stages.contract.schema import DATASET_SCHEMA, dataset_schema
from tests.build.datasets import change_manifest, copy_of
from tests.build.files import write_json
from tests.messages import expect_error
from tests.pipeline.dataset.plain import marks_of, regions_of
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
    assert [path.name for path in dataset.shards] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert (dataset.path, dataset.has_images, dataset.columns) == (
        folder,
        False,
        tuple(DATASET_SCHEMA.names),
    )
    assert [row["sample_id"] for row in dataset.rows()] == [f"s{number:09d}" for number in range(500)]
    with monkeypatch.context() as patched:
        patched.setattr(
            "phrasebox.pipeline.dataset.folder.open_shard", lambda path: pytest.fail("a shard was opened")
        )
        assert repr(dataset).startswith(f"Dataset {folder}: 500 rows")
        assert len(dataset) == 500
    change_manifest(folder, lambda manifest: manifest["counts"].update(written=0))
    assert open_dataset(folder), "also without rows"


def test_images_are_only_read_where_they_are_asked_for(with_images: Path) -> None:
    """And then a few at a time."""
    dataset = open_dataset(with_images)
    assert (dataset.has_images, dataset.columns) == (True, (*DATASET_SCHEMA.names, "image"))
    assert "image" not in next(dataset.rows())
    tables = list(dataset.tables(dataset.columns))
    assert [table.num_rows for table in tables] == [IMAGE_BATCH_ROWS, 18, 30]
    assert tables[0].schema.equals(dataset_schema(["image"]))
    for row in (row for table in tables for row in table.slice(17).to_pylist()):
        assert dataset.sample(row["sample_id"]) == row
    with expect_error(InputError):
        dataset.sample("nobody")


def test_an_unfinished_dataset(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    with expect_error(InputError):
        open_dataset(folder)
    (folder / ".phrasebox").mkdir()
    run = {"config": {"input": {}}, "model_fingerprint": "a"}
    write_json(folder / ".phrasebox" / "run.json", run)
    with expect_error(InputError):
        open_dataset(folder)
    shard = folder / "data" / "00000.parquet"
    dataset = open_any_dataset(folder)
    assert (dataset.is_finished, dataset.manifest, dataset.run, len(dataset)) == (False, {}, run, 500)
    shard.write_bytes(b"PAR1 half")
    with expect_error(InputError):
        next(dataset.rows(["id"]))


def test_regions_in_rows_of_their_own(folder: Path) -> None:
    """The columns that a condition knows, and any field of the annotation."""
    rows = list(open_dataset(folder).rows())
    append_marks(folder, marks_of(rows))
    dataset = open_dataset(folder)
    plain = [region for row in rows for region in regions_of(row, marks_of(rows))]
    whole = dataset.regions()
    assert whole.column_names == [*REGION_COLUMNS.names, "bbox", "group"]
    assert whole.to_pylist() == [{name: region[name] for name in whole.column_names} for region in plain]
    masks = [a["segmentation"] for row in rows for a in row["annotations"]]
    assert dataset.regions(columns=["segmentation"])["segmentation"].to_pylist() == masks
    chosen = [r["id"] for r in plain if r["mark"] == "good" and r["score"] >= np.float32(0.3)]
    assert dataset.regions("mark = 'good'", ["id"], min_score=0.3)["id"].to_pylist() == chosen
    assert dataset.regions("score > 2", ["phrase"]).to_pydict() == {"phrase": []}
    with expect_error(ConfigError, key="columns"):
        dataset.regions(columns=["fraze"])
    with expect_error(ConfigError, key="where"):
        dataset.regions("hed = 'dog'")


def test_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "none", tmp_path / "file", tmp_path):
        with expect_error(InputError):
            open_dataset(place)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema_version": 1}',
        '{"config": {}, "counts": {}}',
        '{"config": {}, "counts": {}, "schema_version": 99}',
    ],
)
def test_damaged_manifests(content: str, folder: Path) -> None:
    """Also where the run need not have finished: a manifest is written at its end."""
    (folder / "dataset.json").write_text(content, errors="surrogateescape")
    for opened in (open_dataset, open_any_dataset):
        with expect_error(InputError, SchemaError):
            opened(folder)
