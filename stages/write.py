"""The sink: rows become Parquet shards. Beside them come the table of their phrases and the dataset card.

The card has the form that the Hugging Face hub and `datasets.load_dataset` read.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stages.contract.errors import SchemaError, one_line
from stages.contract.records import OTHER_LANGUAGE, stable_id
from stages.contract.schema import IMAGE_FIELD
from stages.shared.storage import AnyPath, found_in, parquet_file, replacing

# zstd: half the size of snappy on run-length masks and captions at the same reading speed.
PARQUET_SETTINGS: Final[dict[str, Any]] = {"compression": "zstd", "compression_level": 3}

ROW_GROUP_ROWS: Final = 1000
IMAGE_ROW_GROUP_ROWS: Final = 100  # A reader of one row reads a row group, which with images is then some 10 MB

LIKELY: Final = 0.5  # The score that figures and advice about scores begin at


def row_group_rows(*, embed_images: bool) -> int:
    """Return the rows of the row groups of a shard, whichever engine writes it."""
    return IMAGE_ROW_GROUP_ROWS if embed_images else ROW_GROUP_ROWS


class RollingParquet:
    """Tables of rows as numbered Parquet files. Only one row group is in memory.

    The rows of a file whose write fails are lost. `place` gives, for the number of a file from 0 on, a context with the
    local path to write; the file is in its place when the context ends without an error.
    """

    def __init__(
        self, place: Callable[[int], AbstractContextManager[Path]], *, rows_per_file: int, rows_per_group: int
    ) -> None:
        self.files = 0
        self._place = place
        self._rows_per_file = rows_per_file
        self._rows_per_group = rows_per_group
        self._tables: list[Any] = []
        self._rows = 0
        self._in_file = 0
        self._file = ExitStack()
        self._writer: Any = None

    def write(self, table: Any) -> None:
        """Add rows; write the row groups that are full."""
        self._tables.append(table)
        self._rows += table.num_rows
        while self._rows >= (group := min(self._rows_per_group, self._rows_per_file - self._in_file)):
            self._flush(group)

    def close(self) -> None:
        """Write the remaining rows."""
        if self._rows:
            self._flush(self._rows)
        self._end()

    def abandon(self) -> None:
        """Drop the file that is not finished."""
        file, self._file, self._writer, self._in_file = self._file, ExitStack(), None, 0
        with suppress(OSError, pa.ArrowException):  # of a disk that is full
            file.__exit__(InterruptedError, InterruptedError(), None)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._tables)
        rest = table.slice(rows)
        self._tables, self._rows = ([rest] if rest.num_rows else []), rest.num_rows
        try:
            if self._writer is None:
                path = self._file.enter_context(self._place(self.files))
                self._writer = self._file.enter_context(pq.ParquetWriter(path, table.schema, **PARQUET_SETTINGS))
                self.files += 1
            self._writer.write_table(table.slice(0, rows), row_group_size=rows)
            self._in_file += rows
            if self._in_file == self._rows_per_file:
                self._end()
        except BaseException:
            self.abandon()
            raise

    def _end(self) -> None:
        file, self._file, self._writer, self._in_file = self._file, ExitStack(), None, 0
        file.close()


class ShardWriter(RollingParquet):
    """The shards of a dataset, each of which appears in its folder whole; numbers go on from the highest there."""

    def __init__(self, folder: AnyPath, rows_per_file: int) -> None:
        first = 1 + max((int(path.stem) for path in folder.glob("*.parquet") if path.stem.isdigit()), default=-1)
        super().__init__(
            lambda number: replacing(folder / f"{first + number:05d}.parquet"),
            rows_per_file=rows_per_file,
            rows_per_group=ROW_GROUP_ROWS,
        )

    def write(self, table: Any) -> None:
        """Add rows, with smaller row groups if they hold images."""
        self._rows_per_group = row_group_rows(embed_images=IMAGE_FIELD.name in table.column_names)
        super().write(table)


@dataclass(slots=True)
class Tally:
    """Rows and regions of a dataset. No row is lost: rows = annotated + without_phrases + failed."""

    files: int = 0
    rows: int = 0
    annotated: int = 0  # rows with a phrase
    without_regions: int = 0  # those of them in which no phrase got a region
    without_phrases: int = 0
    failed_by_reason: Counter[str] = field(default_factory=Counter)
    phrases: int = 0
    regions: int = 0
    likely: int = 0  # regions with a score of at least `LIKELY`
    absent: int = 0  # phrases judged not to be in their image
    other_language: int = 0  # rows with a caption in another language than the parser's
    doubled: int = 0  # rows with the id of an earlier row
    categories: Counter[tuple[str, str]] = field(default_factory=Counter)  # (phrase, head) -> regions

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row, some of whose columns are null if it is damaged."""
        regions, phrases = row["annotations"] or (), row["phrase_count"] or 0
        self.rows += 1
        self.phrases += phrases
        self.regions += len(regions)
        self.likely += sum((region["score"] or 0.0) >= LIKELY for region in regions)
        self.absent += len(row["absent"] or ())
        self.other_language += any((warning or "").startswith(OTHER_LANGUAGE) for warning in row["warnings"] or ())
        self.categories.update((region["phrase"] or "", region["head"] or "") for region in regions)
        if row["error"] is not None:
            self.failed_by_reason[row["error"]] += 1
        elif phrases:
            self.annotated += 1
            self.without_regions += not regions
        else:
            self.without_phrases += 1

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return self.failed_by_reason.total()

    def counts(self) -> dict[str, Any]:
        """Return the part of the manifest's `counts` that the shards determine."""
        names = ("annotated", "without_regions", "without_phrases", "failed", "phrases", "regions", "absent", "files")
        return {
            "written": self.rows,
            **{name: getattr(self, name) for name in names},
            "failed_by_reason": dict(sorted(self.failed_by_reason.items())),
            "categories": len({phrase for phrase, _ in self.categories}),
        }


CATEGORIES_SCHEMA: Final = pa.schema(
    [("id", pa.int64()), ("name", pa.string()), ("supercategory", pa.string()), ("count", pa.int64())]
)

_COLUMNS = [
    "id", "error", "phrase_count", "annotations.list.element.phrase", "annotations.list.element.head",
    "annotations.list.element.score", "absent.list.element.caption_index", "warnings",
]  # fmt: skip


def tally(data: AnyPath) -> Tally:
    """Count the rows of all shards in a folder. Raise SchemaError for a shard that is damaged or lacks a column."""
    total = Tally()
    ids = [np.empty(0, np.int64)]
    for path in found_in(data, "*.parquet"):
        total.files += 1
        try:
            with parquet_file(path) as file:
                missing = {name.partition(".")[0] for name in _COLUMNS} - set(file.schema_arrow.names)
                if missing:
                    raise SchemaError(f"{path} lacks the columns {sorted(missing)}: not a phrasebox shard")
                for batch in file.iter_batches(batch_size=1024, columns=_COLUMNS):
                    ids.append(batch.column("id").to_numpy())
                    for row in batch.to_pylist():
                        total.add(row)
        except (pa.ArrowException, OSError) as error:
            advice = "delete it and run the same command again, only its rows are done again"
            raise SchemaError(f"{path} is damaged ({one_line(error)}): {advice}") from error
    total.doubled = total.rows - len(np.unique(np.concatenate(ids)))
    return total


def write_categories(total: Tally, path: AnyPath) -> None:
    """Write `categories.parquet`: id, name (the phrase), supercategory (its most frequent head), count.

    Raise SchemaError if two phrases have one id; with a million phrases that happens to 6 of 100,000 datasets.
    """
    rows = category_rows(total)
    for before, after in itertools.pairwise(rows):
        if before[0] == after[0]:
            raise SchemaError(f"the phrases {before[1]!r} and {after[1]!r} have the same category id {before[0]}")
    columns = zip(*rows, strict=True) if rows else [[]] * len(CATEGORIES_SCHEMA)
    table = pa.table([list(column) for column in columns], schema=CATEGORIES_SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, **PARQUET_SETTINGS)


def category_rows(total: Tally) -> list[tuple[int, str, str, int]]:
    """Return the rows (id, name, supercategory, count) of `categories.parquet`, in order of their ids."""
    heads: dict[str, Counter[str]] = {}
    for (phrase, head), count in total.categories.items():
        heads.setdefault(phrase, Counter())[head] += count
    return sorted(
        (stable_id(phrase), phrase, min(counts, key=lambda head: (-counts[head], head)), counts.total())
        for phrase, counts in heads.items()
    )


def dataset_card(
    total: Tally,
    schema: Any,
    *,
    model: str,
    explainer: str,
    fitted_to: str | None,
    doubt: str | None = None,
    presence: str | None = None,
    source: tuple[str, str] | None = None,
) -> str:
    """Return the README.md of a dataset: a YAML header with splits and features, then the figures and the columns.

    `fitted_to` says which images a calibration holds for, `doubt` how those of the dataset differ from them, `presence`
    where `presence` comes from if a calibration knows it alone, and `source` where regions come from if not from heat
    maps, and the meaning of their score; all in words.
    """
    made = f"one {explainer} heat map per phrase,\nboxes and masks from the heat maps" if source is None else source[0]
    care = f" {doubt}." if doubt else ""
    score = (
        f"It is calibrated on {fitted_to}:\non images like those, about 80 % of the regions with a score of 0.8 have "
        "a box IoU of 0.5 or more. On others a score\ncan be far too high or too low: `phrasebox eval` measures that "
        f"where boxes are known, and `phrasebox calibrate` fits\nscores to them.{care}"
        if fitted_to is not None
        else f"It is {source[1]}."
        if source is not None
        else "It only ranks: it is not the probability of being right."
    )
    if presence is not None:
        score += f"\n`presence`, by which it is multiplied, was fitted to {presence}."
    header = {
        "task_categories": ["object-detection", "image-segmentation"],
        "tags": ["phrase-grounding", "grad-eclip", "phrasebox"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "dataset_info": {"features": _features(schema)},
    }
    columns = "\n".join(f"| `{entry.name}` | {_doc(entry)} |" for entry in schema)
    fields = "\n".join(f"| `{entry.name}` | {_doc(entry)} |" for entry in schema.field("annotations").type.value_type)
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# Regions for the phrases of captions

Made by phrasebox with the model `{model}` from captioned images: noun phrases of the captions, {made}.
Nobody looked at the regions; filter them by `score` before you trust them. {score}
The licence of the images and captions is that of their source.

| | |
|---|---|
| images | {total.rows:,} |
| with phrases | {total.annotated:,} |
| without phrases | {total.without_phrases:,} |
| failed | {total.failed:,} |
| phrases | {total.phrases:,} |
| regions | {total.regions:,} |
| phrases judged not to be in their image | {total.absent:,} |
| different phrases | {len({phrase for phrase, _ in total.categories}):,} |

Coordinates are pixels of the EXIF-rotated image, origin top left. One row per image:

| column | |
|---|---|
{columns}

Fields of `annotations`:

| field | |
|---|---|
{fields}
"""


def _doc(entry: Any) -> str:
    metadata = entry.metadata or {}
    doc, unit = (metadata.get(key, b"").decode() for key in (b"doc", b"unit"))
    return f"{doc} ({unit})" if unit else doc


def _features(fields: Any) -> list[dict[str, Any]]:
    types = {entry.name: {"dtype": "image"} if entry.name == "image" else _type(entry.type) for entry in fields}
    return [{"name": name, **kind} for name, kind in types.items()]


def _type(kind: Any) -> dict[str, Any]:
    """A type in the words of `datasets`."""
    if pa.types.is_list(kind):
        inner = kind.value_type
        return {"list": _features(inner) if pa.types.is_struct(inner) else dtype_of(inner)}
    return {"struct": _features(kind)} if pa.types.is_struct(kind) else {"dtype": dtype_of(kind)}


def dtype_of(kind: Any) -> str:
    """Return the name that `datasets` has for an Arrow type of single values."""
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
