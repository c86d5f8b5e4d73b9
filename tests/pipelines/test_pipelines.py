"""The page's examples run in the pipelines themselves, and give the rows that a call gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from phrasebox.pipeline.annotate.annotator import Annotator
from phrasebox.pipeline.demo.photographs import FOLDER
from tests.architecture.source import ROOT
from tests.build.datasets import Json
from tests.pipelines.pages import assert_alike, example


def test_daft(folder: Path, expected: list[Json]) -> None:
    names: Json = {}
    exec(example("import daft"), names)
    table = names["annotated"]
    assert_alike(table.to_pylist(), expected)
    assert table.schema.names == ["image", "captions", *Annotator.schema.names]


def test_lance(folder: Path, photographs: list[Json], expected: list[Json]) -> None:
    """A checkpoint of a run that was stopped is taken over, and the columns have the types of a dataset."""
    import lance

    rows = [
        {
            "image": (FOLDER / row["image"]).read_bytes() if (FOLDER / row["image"]).exists() else None,
            "caption": row["captions"],
        }
        for row in photographs
    ]
    schema = pa.schema([("image", pa.binary()), ("caption", pa.list_(pa.string()))])
    table = pa.Table.from_pylist(rows, schema=schema)
    lance.write_dataset(table, "photographs.lance", max_rows_per_file=2)
    names: Json = {}
    exec(example("import lance"), names)
    annotated = lance.dataset("photographs.lance").to_table()
    assert annotated.schema.names == ["image", "caption", *Annotator.schema.names]
    for name in Annotator.schema.names:
        assert annotated.schema.field(name).type == Annotator.schema.field(name).type
    assert_alike(annotated.to_pylist(), expected)


def test_data_juicer(folder: Path, photographs: list[Json], expected: list[Json]) -> None:
    """By its own command, which reads the recipe of the page, with one caption an image."""
    lines = [{"text": row["captions"][0], "images": [f"photos/{row['image']}"]} for row in photographs]
    Path("samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Path("phrasebox_mapper.py").write_text(example("PhraseboxMapper"))
    Path("recipe.yaml").write_text(example("custom_operator_paths", "yaml"))
    done = subprocess.run(
        [sys.executable, "-m", "data_juicer.tools.process_data", "--config", "recipe.yaml"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = Path("annotated/samples.jsonl")
    assert output.exists(), done.stderr[-3000:]
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    annotate = Annotator("photo", input={"image_root": str(FOLDER)}, regions={"absent_share": 0.05})
    table = [{"image": row["image"], "caption": row["captions"][0]} for row in photographs]
    assert_alike(rows, annotate(table))
