"""Ray Data and Hugging Face's datasets call an annotator, as the page prints it. Others: tests/pipelines."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.annotate.annotator import Annotator
from phrasebox.pipeline.demo.photographs import FOLDER
from tests.architecture.source import ROOT
from tests.build.datasets import Json
from tests.pipelines.pages import assert_alike, example

QUIET = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
"""


@pytest.fixture
def images(rows: list[Json], scenes_folder: Path) -> datasets.Dataset:
    """Scenes as Hugging Face has them, with a column that decodes its images."""
    paths = [str(scenes_folder / "images" / row["image"]) for row in rows[:4]]
    table = {
        "id": [row["id"] for row in rows[:4]],
        "image": paths,
        "caption": [row["caption"] for row in rows[:4]],
    }
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


def test_hugging_face_datasets(annotator: Annotator, images: datasets.Dataset, rows: list[Json]) -> None:
    expected = annotator(rows[:4])
    as_arrow = images.with_format("arrow").map(annotator, batched=True, batch_size=3).with_format(None)
    assert as_arrow.column_names == [*images.column_names, *Annotator.schema.names]
    assert as_arrow.features["image"] == datasets.Image()
    assert as_arrow.features["annotations"].feature["score"] == datasets.Value("float32")
    assert_alike([as_arrow[number] for number in range(4)], expected)
    decoded = images.map(annotator, batched=True, batch_size=3)
    assert decoded["error"][:] == [None] * 4
    assert decoded.features["image"] == datasets.Image()


def test_the_cache_of_datasets_knows_an_annotator(
    make_annotator: Callable[..., Annotator], images: datasets.Dataset
) -> None:
    """By its settings, whether or not it has loaded its model."""
    from datasets.fingerprint import Hasher

    first = make_annotator()
    digest = Hasher.hash(first)
    first._worker()
    assert Hasher.hash(first) == Hasher.hash(make_annotator()) == digest
    assert Hasher.hash(make_annotator({"min_presence": 0.3})) != digest


@pytest.mark.ray
@pytest.mark.slow
def test_ray_data(tmp_path: Path) -> None:
    """The page's example, in a process of its own."""
    shutil.copytree(FOLDER, tmp_path / "photos", ignore=shutil.ignore_patterns("*.py", "*.md", "*.json*"))
    lines = (FOLDER / "captions.jsonl").read_text("utf-8").splitlines()[:4]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUIET + example("import ray")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = pq.read_table(tmp_path / "annotated")
    for name in Annotator.schema.names:
        assert table.schema.field(name).type.equals(Annotator.schema.field(name).type), name
    photographs = list(map(json.loads, lines))
    annotate = Annotator("photo", input={"image_root": str(FOLDER)}, regions={"absent_share": 0.05})
    expected = {row["id"]: row for row in annotate(photographs)}
    found = table.to_pylist()
    assert sorted(row["id"] for row in found) == sorted(expected)
    assert_alike(found, [expected[row["id"]] for row in found])
