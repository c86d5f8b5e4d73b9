"""A dataset's folder, for reading: manifest, shards, rows as Arrow tables or dicts."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.pipeline.config.paths import as_written
from phrasebox.pipeline.dataset.foreign_tables import check_tables
from phrasebox.pipeline.dataset.marks import read_marks
from phrasebox.pipeline.dataset.rows import Row, row_detections
from phrasebox.pipeline.dataset.score_choice import RegionChoice, select
from phrasebox.pipeline.dataset.selection import (
    CONDITION_COLUMNS,
    REGION,
    REGION_COLUMNS,
    Selection,
    Selector,
    region_schema,
)
from phrasebox.pipeline.dataset.shard_list import SHARDS, shards_of
from phrasebox.pipeline.dataset.stored_run import MADE_AGAIN, read_manifest, read_unfinished
from phrasebox.stages.contract.errors import DATASET_EXPECTED, InputError, one_line
from phrasebox.stages.contract.schema import (
    DATASET_SCHEMA,
    HEAT_MAP_FIELDS,
    IMAGE_FIELD,
    OPTIONAL_FIELDS,
)
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.lifted_shards import shard_file
from phrasebox.stages.files.shards import footer_sha256_of
from phrasebox.stages.files.storage import AnyPath, ObjectPath, place_of

BATCH_ROWS: Final = 512  # Rows of a table without images: a few MB
IMAGE_BATCH_ROWS: Final = 32  # Rows of a table that holds encoded images
_BUFFER_BYTES: Final = (
    1 << 20
)  # Read-ahead in a column when single rows are read: a row group of images may be 100 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset on a local or mounted file system, or in object storage.

    Its length is the number of its rows.

    Attributes:
        path: The folder; absolute if it is local.
        manifest: The content of `dataset.json`; empty if the run has not finished.
        run: The known ones of `config`, `model_fingerprint` and `signature`, which determine the
            rows.
        shards: The Parquet files that the manifest lists, in the order of their names. Rows are
            read in this order everywhere.
        optional: The columns of `OPTIONAL_FIELDS` that the rows have, in their order.
        footers: The digests of the shards' footers that the manifest lists, by the names of the files.
    """

    path: AnyPath
    manifest: Json
    run: Json
    shards: tuple[AnyPath, ...]
    optional: tuple[str, ...] = ()
    footers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_finished(self) -> bool:
        """Whether the run that makes the dataset has finished."""
        return bool(self.manifest)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the shards."""
        return (*DATASET_SCHEMA.names, *self.optional)

    @property
    def has_images(self) -> bool:
        """Whether the rows hold the encoded images."""
        return IMAGE_FIELD.name in self.optional

    @property
    def has_heat_maps(self) -> bool:
        """Whether the rows hold all phrases and their heat maps."""
        return all(field.name in self.optional for field in HEAT_MAP_FIELDS)

    @property
    def has_probabilities(self) -> bool:
        """Whether scores are probabilities: the run has finished, and with a calibration."""
        return self.manifest.get("calibration") is not None

    @property
    def score_margin(self) -> float:
        """How much too high estimated scores may be, 0 .. 1; 0 for others."""
        scores = self.manifest.get("scores")
        margin = scores.get("estimated_margin") if isinstance(scores, dict) else None
        return min(max(float(margin), 0.0), 1.0) if isinstance(margin, int | float) else 0.0

    def __len__(self) -> int:
        """Return the number of rows, by the manifest or, without one, by the shards."""
        written = self.manifest["counts"].get("written") if self.is_finished else None
        return written if isinstance(written, int) else sum(map(self.rows_in, self.shards))

    def __bool__(self) -> bool:
        """Return True, even without rows: `if dataset` must not depend on their number."""
        return True

    def __repr__(self) -> str:
        """Return path and size on one line. No shard is opened."""
        rows = f"{len(self):,} rows in " if self.is_finished else ""
        return f"Dataset {self.path}: {rows}{len(self.shards):,} shards"

    def tables(
        self, columns: Sequence[str] | None = None, *, batch_rows: int | None = None
    ) -> Iterator[Any]:
        """Yield all rows in order, as Arrow tables, in flat memory.

        Raise InputError if a shard is damaged.

        Args:
            columns: Names of columns, or Parquet's dotted paths into them
                ("annotations.list.element.score"); by default all columns except the optional
                ones.
            batch_rows: The most rows of a table; by default `BATCH_ROWS`, or `IMAGE_BATCH_ROWS`
                if images are read.
        """
        for path in self.shards:
            with self.open_shard(path) as file:
                yield from (
                    table for _, table in tables_in(file, columns or DATASET_SCHEMA.names, batch_rows)
                )

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield all rows in order, as dicts; see `tables`."""
        for table in self.tables(columns):
            yield from table.to_pylist()

    def sample(self, sample_id: str) -> Row:
        """Return the row of a sample with all columns, `image` included.

        Raise InputError if there is none.
        """
        for path in self.shards:
            with self.open_shard(path) as file:
                for first, table in tables_in(file, ["sample_id"], 8192):
                    if (place := pc.index(table["sample_id"], sample_id).as_py()) >= 0:
                        return self.rows_of_shard(path, [first + place], self.columns)[0]
        raise InputError(f"{self.path} has no sample {sample_id!r}")

    @contextmanager
    def open_shard(self, path: AnyPath, *, buffer_bytes: int = 0) -> Iterator[Any]:
        """Open one of `shards` as a `ParquetFile`.

        Raise InputError if opening it, or reading from it in the block, fails, or if its footer is not the one that
        the manifest lists: pages have checksums, and footers have none. Those in object storage are not compared,
        because that has checksums of its own, and a request costs time.
        """
        with open_shard(path, buffer_bytes=buffer_bytes) as file:
            listed = self.footers.get(path.name)
            if listed and not isinstance(path, ObjectPath) and footer_sha256_of(path) != listed:
                raise pa.ArrowInvalid("its footer is not the one that its run wrote")
            yield file

    def rows_in(self, path: AnyPath) -> int:
        """Return the number of rows of one of `shards`. Raise InputError if it is damaged."""
        with self.open_shard(path) as file:
            return int(file.metadata.num_rows)

    def rows_of_shard(self, path: AnyPath, numbers: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Return the rows of a shard with these ascending numbers. Only their row groups are read.

        Raise as `rows_in`.
        """
        rows: list[Row] = []
        with self.open_shard(path, buffer_bytes=_BUFFER_BYTES) as file:
            first = 0
            for group in range(file.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                pending = [number - first for number in numbers if first <= number < stop]
                first = stop
                tables = tables_in(file, columns, group=group, threads=False)
                while pending:
                    start, table = next(tables)
                    places = [number - start for number in pending if number < start + table.num_rows]
                    rows += table.take(pa.array(places, pa.int64())).to_pylist()
                    pending = pending[len(places) :]
        return rows

    def to_supervision(self, sample: str | Row) -> Any:
        """Return the regions of a sample, a sample id or a row, as `supervision.Detections`.

        The class is the phrase, its id the `category_id`; see `row_detections`. Raise InputError
        if there is no such sample, and ConfigError if supervision is not installed.
        """
        return row_detections(self.sample(sample) if isinstance(sample, str) else sample)

    def regions(
        self,
        where: str = "",
        columns: Sequence[str] = (*REGION_COLUMNS.names, "bbox", "group"),
        **choice: float,
    ) -> Any:
        """Return the chosen regions as one Arrow table with a row for each region.

        Args:
            where: SQL condition such as "head = 'dog' AND w > 100", see
                `phrasebox.pipeline.dataset.selection`.
            columns: Names from `REGION_COLUMNS`, or fields of annotations, such as "segmentation".
            **choice: min_score, precision, keep, max_area: see `RegionChoice`.

        Raise ConfigError for a choice that cannot be made or an unknown column, InputError for a
        damaged shard.
        """
        selector = Selector(self.selection(RegionChoice(**choice, where=where.strip() or "true")))
        schema = region_schema(columns)
        fields = [REGION + name for name in schema.names if name not in REGION_COLUMNS.names]
        tables = self.tables([*CONDITION_COLUMNS, *fields], batch_rows=8 * BATCH_ROWS)
        return pa.concat_tables(
            [schema.empty_table(), *(selector.regions(table, schema) for table in tables)]
        )

    def selection(self, choice: RegionChoice) -> Selection:
        """Return a choice with its least score and the marks; raise as `score_choice.select`."""
        return select(self, choice, read_marks(self.path) if choice.where.strip() else {})


class NumberedRows:
    """The rows of a dataset by their number.

    Only the shards that matter are opened; threads may share it.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._firsts = [0]
        self._lock = threading.Lock()

    def rows_at(self, numbers: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Return the rows with these numbers, in this order, without those beyond the last.

        Raise as `rows_in`.
        """
        rows_by_number: dict[int, Row] = {}
        numbers_by_shard = defaultdict[int, list[int]](list)
        for number in sorted(set(numbers)):
            if (shard := self._shard_of(number)) is not None:
                numbers_by_shard[shard].append(number)
        for shard, members in numbers_by_shard.items():
            places = [number - self._firsts[shard] for number in members]
            rows = self.dataset.rows_of_shard(self.dataset.shards[shard], places, columns)
            rows_by_number.update(zip(members, rows, strict=True))
        return [rows_by_number[number] for number in numbers if number in rows_by_number]

    def _shard_of(self, number: int) -> int | None:
        with self._lock:
            while number >= self._firsts[-1] and len(self._firsts) <= len(self.dataset.shards):
                try:
                    rows = self.dataset.rows_in(self.dataset.shards[len(self._firsts) - 1])
                except InputError:
                    if self.dataset.is_finished:
                        raise
                    rows = 0  # a run may be writing it
                self._firsts.append(self._firsts[-1] + rows)
            return bisect_right(self._firsts, number) - 1 if 0 <= number < self._firsts[-1] else None


@contextmanager
def open_shard(path: AnyPath, *, buffer_bytes: int = 0) -> Iterator[Any]:
    """Open a shard as a `ParquetFile`, or a `LiftedShard`.

    Raise InputError if opening it, or reading from it in the block, fails.
    """
    try:
        with shard_file(path, buffer_bytes=buffer_bytes) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is damaged or cannot be read ({one_line(error)}): phrasebox validate finds all such "
            "shards, and then the command of the run makes their rows anew"
        ) from error


def tables_in(
    file: Any,
    columns: Sequence[str],
    batch_rows: int | None = None,
    *,
    group: int | None = None,
    threads: bool = True,
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the first row, table) for the rows of an open shard, as `Dataset.tables`.

    With `group`, only this row group is read, and its rows are numbered from 0. `threads` lets
    Arrow decode in threads, which do not survive a fork. Raise ArrowInvalid if the shard lacks a
    column.
    """
    names = {name.partition(".")[0] for name in columns}
    if absent_columns := names - set(file.schema_arrow.names):
        raise pa.ArrowInvalid(f"it lacks the columns {sorted(absent_columns)}")
    size = batch_rows or (IMAGE_BATCH_ROWS if IMAGE_FIELD.name in names else BATCH_ROWS)
    first = 0
    options = {} if group is None else {"row_groups": [group]}
    for batch in file.iter_batches(batch_size=size, columns=list(columns), use_threads=threads, **options):
        yield first, pa.Table.from_batches([batch])
        first += batch.num_rows


def open_dataset(path: AnyPath | str) -> Dataset:
    """Open the dataset of a finished run in a folder, which may be a URL.

    Raises:
        InputError: There is no dataset, it is damaged or unreadable, or its run has not
            finished.
        SchemaError: A newer phrasebox has made the dataset; or another user, and a row breaks the contract.

    >>> from phrasebox import open_dataset
    >>> dataset = open_dataset("out/")
    >>> len(dataset), dataset.is_finished
    (12, True)
    >>> sorted(dataset.regions("w > h", ["phrase", "score", "bbox"], precision=0.7).column_names)
    ['bbox', 'phrase', 'score']
    >>> row = next(dataset.rows(["sample_id", "captions"]))
    >>> dataset.sample(row["sample_id"])["captions"] == row["captions"]
    True
    """
    return _open(path, may_be_unfinished=False)


def open_any_dataset(path: AnyPath | str) -> Dataset:
    """Open the dataset in a folder, whose run may not have finished. Raise as `open_dataset`."""
    return _open(path, may_be_unfinished=True)


def _open(path: AnyPath | str, *, may_be_unfinished: bool) -> Dataset:
    folder = place_of(path)
    location = as_written(path)
    try:
        check_folder(folder, location)
        manifest = read_manifest(folder, location)
        run = manifest or read_unfinished(folder, location)
        shards = shards_of(folder, manifest, location)
    except OSError as error:
        raise InputError(f"cannot read {location}: {one_line(error)}") from error
    if not manifest and not (shards and may_be_unfinished):
        raise _not_finished(location, run, shards)
    check_tables(shards, run)
    return Dataset(
        path=folder,
        manifest=manifest or {},
        run={key: run[key] for key in ("config", "model_fingerprint", "signature") if key in run},
        shards=shards,
        optional=_optional_columns(shards),
        footers={entry["name"]: entry["footer_sha256"] for entry in (manifest or {}).get(SHARDS) or ()},
    )


def _not_finished(location: str, run: Json, shards: Sequence[AnyPath]) -> InputError:
    if shards and not run:
        return InputError(f"{location} has shards, but no dataset.json: {MADE_AGAIN}")
    reason = (
        "the run has not finished, run the same command again"
        if run
        else f"no dataset.json in it; {DATASET_EXPECTED}"
    )
    return InputError(f"{location} is not a finished dataset: {reason}")


def check_folder(folder: AnyPath, location: object) -> None:
    """Raise InputError if a dataset's path is not a folder.

    `location` is the path as the user wrote it.
    """
    if folder.is_dir():
        return
    is_file = folder.exists()
    raise InputError(
        f"{location} is a file: {DATASET_EXPECTED}" if is_file else f"no such folder: {location}"
    )


def _optional_columns(shards: Sequence[AnyPath]) -> tuple[str, ...]:
    for path in shards:  # the first shards may be damaged
        with suppress(InputError), open_shard(path) as file:
            return tuple(field.name for field in OPTIONAL_FIELDS if field.name in file.schema_arrow.names)
    return ()
