"""The folder of a dataset, for reading: manifest, shards, and their rows as Arrow tables or dicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.errors import DATASET_EXPECTED, InputError, one_line
from stages.contract.schema import (
    DATASET_SCHEMA,
    IMAGE_FIELD,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    other_version,
    read_batches,
)

BATCH_ROWS: Final = 512
"""Rows of a table of `Dataset.tables`: a few MB, without images."""

IMAGE_BATCH_ROWS: Final = 32
"""Rows of a table that holds encoded images."""


_URL: Final = re.compile("[a-z][a-z0-9+.-]+:/")
"""Also as pathlib writes it, with one slash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset on a local or mounted file system.

    path        absolute folder
    manifest    `dataset.json`; empty if the run has not finished
    run         what the rows depend on: `config`, `model_fingerprint`; empty if not even that is known
    shards      Parquet files in order of their names, which is the order of the rows everywhere
    has_images  whether the rows hold the encoded images
    """

    path: Path
    manifest: dict[str, Any]
    run: dict[str, Any]
    shards: tuple[Path, ...]
    has_images: bool

    @property
    def finished(self) -> bool:
        """Whether the run that makes it has come to its end."""
        return bool(self.manifest)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the shards."""
        return (*DATASET_SCHEMA.names, *([IMAGE_FIELD.name] if self.has_images else []))

    def tables(self, columns: Sequence[str] | None = None, *, batch_rows: int | None = None) -> Iterator[Any]:
        """All rows as Arrow tables of at most `batch_rows` rows, in order; memory stays flat.

        columns     names of columns, or dotted paths into them as Parquet knows them
                    ("annotations.list.element.score"); all but the image by default
        batch_rows  `BATCH_ROWS` by default, `IMAGE_BATCH_ROWS` with images

        Raises InputError for a shard that is damaged.
        """
        names = list(DATASET_SCHEMA.names if columns is None else columns)
        rows = batch_rows or (IMAGE_BATCH_ROWS if IMAGE_FIELD.name in names else BATCH_ROWS)
        for path in self.shards:
            yield from tables_of(path, names, rows)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows as dicts, in order. See `tables`."""
        for table in self.tables(columns):
            yield from table.to_pylist()


def tables_of(path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[Any]:
    """The rows of one shard. Raises InputError if it is damaged."""
    try:
        # Without pre-buffering, or a row group of images would be read into memory at once.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield from read_batches(file, columns, batch_size=batch_rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a shard of a dataset: {one_line(error)}") from error


def open_dataset(path: Path, *, finished: bool = True) -> Dataset:
    """The dataset in a folder.

    finished  refuse a dataset whose run has not come to its end

    Raises InputError for a folder that holds no dataset, one of another schema version, and a damaged manifest.
    """
    if _URL.match(str(path)):
        raise InputError(f"{path} is a URL: only local and mounted folders are read here; copy the dataset first")
    folder = path.expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{path} is a file: {DATASET_EXPECTED}" if folder.exists() else f"no such folder: {path}")
    manifest = _manifest(folder / "dataset.json")
    run = manifest if manifest else _read_json(folder / ".phrasebox" / "run.json") or {}
    shards = tuple(sorted((folder / "data").glob("*.parquet")))
    if not manifest and (finished or not shards):
        what = (
            "the run has not finished, run the same command again"
            if run
            else f"no dataset.json in it; {DATASET_EXPECTED}"
        )
        raise InputError(f"{path} is not a finished dataset: {what}")
    version = run.get("schema_version", SCHEMA_VERSION)
    if version not in READABLE_VERSIONS:
        raise InputError(f"{path}: {other_version(version)}")
    return Dataset(
        path=folder,
        manifest=manifest,
        run={key: run[key] for key in ("config", "model_fingerprint") if key in run},
        shards=shards,
        has_images=_has_images(shards),
    )


def _has_images(shards: Sequence[Path]) -> bool:
    for path in shards:  # of an unfinished run, the first ones may be half written
        try:
            return IMAGE_FIELD.name in pq.read_schema(path).names
        except (pa.ArrowException, OSError):
            continue
    return False


def _manifest(path: Path) -> dict[str, Any]:
    """Empty where there is none."""
    manifest = _read_json(path)
    if manifest is None:
        return {}
    if not isinstance(manifest.get("config"), dict):
        raise InputError(f"{path} is not the manifest of a phrasebox dataset")
    if "schema_version" not in manifest:
        raise InputError(f"{path}: {other_version(None)}")
    return manifest


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: expected an object")
    return content
