"""Datasets on the disk: their rows and their manifest, read and changed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phrasebox.stages.files.shards import read_shard_file

Json = dict[str, Any]
"""A row, a region, or what else is an object in JSON."""


def copy_of(dataset: Path, folder: Path) -> Path:
    """A copy in a folder, to be changed."""
    return Path(shutil.copytree(dataset, folder / "dataset"))


def manifest_of(dataset: Path) -> Json:
    return json.loads((dataset / "dataset.json").read_text())


def change_manifest(dataset: Path, change: Callable[[Json], Any] = lambda _: None, **values: Any) -> None:
    """Change a dataset's manifest; values take the place of those with their names."""
    manifest = manifest_of(dataset)
    change(manifest)
    (dataset / "dataset.json").write_text(json.dumps({**manifest, **values}))


def shards_of(dataset: Path) -> list[Path]:
    return sorted((dataset / "data").glob("*.parquet"))


def rows_of(dataset: Path) -> list[Json]:
    """All rows in the order of the shards, with their images if they hold them."""
    return [row for path in shards_of(dataset) for row in pq.read_table(path).to_pylist()]


def list_shards(dataset: Path) -> None:
    """Let the manifest of a dataset list its shards as they are now, as if its run had written them so."""
    if (dataset / "dataset.json").exists() and "shards" in manifest_of(dataset):
        change_manifest(dataset, shards=[asdict(read_shard_file(path)) for path in shards_of(dataset)])


def change_rows(path: Path, change: Callable[[list[Json]], Any], **options: Any) -> None:
    """Change the rows of a Parquet file; options are those of `write_table`. A manifest lists it as it is then."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path, **options)
    list_shards(path.parent.parent)
