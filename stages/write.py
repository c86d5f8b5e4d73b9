"""The sink: rows become Parquet shards. Beside them comes the dataset card.

The card has the form that the Hugging Face hub and `datasets.load_dataset` read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stages.contract.schema import IMAGE_FIELD
from stages.shared.storage import AnyPath, replacing

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
    right_of_likely: float = 0.0  # the sum of their scores: how many of them are right if scores are probabilities
    absent: int = 0  # phrases judged not to be in their image
    other_language: int = 0  # rows with a caption in another language than the parser's
    categories: int = 0  # different phrases of regions

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return self.failed_by_reason.total()

    @property
    def likely_in_words(self) -> str:
        """What calibrated scores say of the regions, as the rest of a sentence about images like those of the fit."""
        if not self.likely:
            return f"a score is the share of such regions that are right; none here has {LIKELY} or more"
        share = self.likely / self.regions
        right = self.right_of_likely / self.likely
        return f"of the {share:.0%} of the regions with a score of {LIKELY} or more about {right:.0%} are right"

    def counts(self) -> dict[str, Any]:
        """Return the part of the manifest's `counts` that the shards determine."""
        names = (
            "annotated",
            "without_regions",
            "without_phrases",
            "failed",
            "phrases",
            "regions",
            "absent",
            "files",
            "categories",
        )
        return {
            "written": self.rows,
            **{name: getattr(self, name) for name in names},
            "failed_by_reason": dict(sorted(self.failed_by_reason.items())),
        }


def dataset_card(
    total: Tally,
    schema: Any,
    *,
    model: str,
    precision: str | None,
    explainer: str,
    fitted_to: str | None,
    doubt: str | None = None,
    presence: str | None = None,
    source: tuple[str, str] | None = None,
) -> str:
    """Return the README.md of a dataset: a YAML header with splits and features, then the figures and the columns.

    `precision` is the model's, None if that is not known. `fitted_to` says which images a
    calibration holds for, `doubt` how those of the dataset differ from them, `presence` where `presence` comes from if
    a calibration knows it alone, and `source` where regions come from if not from heat maps, and the meaning of their
    score; all in words.
    """
    made = f"one {explainer} heat map per phrase,\nboxes and masks from the heat maps" if source is None else source[0]
    bits = "" if precision is None else f" in {precision}"
    care = f" {doubt}." if doubt else ""
    score = (
        f"It is calibrated on {fitted_to}:\non images like those, {total.likely_in_words}.\nA region is right with a "
        "box IoU of 0.5 or more. On other images a score can be far too high or too low:\n`phrasebox eval` measures "
        f"that where boxes are known, and `phrasebox calibrate` fits\nscores to them.{care}"
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

Made by phrasebox with the model `{model}`{bits} from captioned images: noun phrases of the captions, {made}.
Nobody has checked every region: filter them by `score` before you trust them. {score}
The licence of the images and captions is that of their source. `dataset.json` has the configuration, and the versions
of the libraries that made the rows.

| | |
|---|---|
| images | {total.rows:,} |
| with phrases | {total.annotated:,} |
| without phrases | {total.without_phrases:,} |
| failed | {total.failed:,} |
| phrases | {total.phrases:,} |
| regions | {total.regions:,} |
| phrases judged not to be in their image | {total.absent:,} |
| different phrases | {total.categories:,} |

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
