"""Counts of what a dataset's shards hold, and the two files that state them: the table of its phrases and its card.

The card has the form that the Hugging Face hub and `datasets.load_dataset` read.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stages.contract.errors import SchemaError, one_line
from stages.contract.records import OTHER_LANGUAGE, stable_id
from stages.shared.storage import AnyPath, found_in, parquet_file, replacing
from stages.write.parquet import PARQUET_SETTINGS

LIKELY: Final = 0.5
"""The score that figures and advice about scores begin at."""


@dataclass(slots=True)
class Tally:
    """Rows and regions of a dataset. No row is lost: rows = annotated + without_phrases + failed.

    Attributes:
        files: Shards.
        rows: All rows.
        annotated: Rows with at least one phrase.
        without_regions: Those of the annotated rows in which no phrase got a region.
        without_phrases: Rows whose captions name nothing.
        failed_by_reason: Rows with an error, by its reason.
        phrases: Phrases found in all captions.
        regions: Annotations.
        likely: Those of them with a score of at least `LIKELY`.
        absent: Phrases judged not to be in their image.
        other_language: Rows with a caption in another language than the parser's, by their warnings.
        categories: (phrase, head) -> number of regions.
        doubled: Rows whose id an earlier row has.
    """

    files: int = 0
    rows: int = 0
    annotated: int = 0
    without_regions: int = 0
    without_phrases: int = 0
    failed_by_reason: Counter[str] = field(default_factory=Counter)
    phrases: int = 0
    regions: int = 0
    likely: int = 0
    absent: int = 0
    other_language: int = 0
    categories: Counter[tuple[str, str]] = field(default_factory=Counter)
    doubled: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row by its columns `error`, `phrase_count`, `annotations`, `absent` and `warnings`.

        They are null in a damaged row.
        """
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
        return sum(self.failed_by_reason.values())

    def counts(self) -> dict[str, Any]:
        """The part of the manifest's `counts` that the shards tell."""
        return {
            "written": self.rows,
            "annotated": self.annotated,
            "without_regions": self.without_regions,
            "without_phrases": self.without_phrases,
            "failed": self.failed,
            "failed_by_reason": dict(sorted(self.failed_by_reason.items())),
            "phrases": self.phrases,
            "regions": self.regions,
            "absent": self.absent,
            "categories": len({phrase for phrase, _ in self.categories}),
            "files": self.files,
        }


CATEGORIES_SCHEMA: Final = pa.schema(
    [("id", pa.int64()), ("name", pa.string()), ("supercategory", pa.string()), ("count", pa.int64())]
)
"""The columns of `categories.parquet`."""

_COLUMNS = [
    "id", "error", "phrase_count", "annotations.list.element.phrase", "annotations.list.element.head",
    "annotations.list.element.score",
    "absent.list.element.caption_index", "warnings",
]  # fmt: skip


def tally(data: AnyPath) -> Tally:
    """Count the rows of all shards in a folder. Reads only the columns it needs, a batch at a time.

    Raises:
        SchemaError: A shard lacks a column or is damaged.
    """
    total = Tally()
    ids = [np.empty(0, np.int64)]
    for path in found_in(data, "*.parquet"):
        total.files += 1
        try:
            with parquet_file(path) as file:
                missing = {"id", "error", "phrase_count", "annotations", "absent", "warnings"} - set(
                    file.schema_arrow.names
                )
                if missing:
                    raise SchemaError(f"{path} lacks the columns {sorted(missing)}: not a phrasebox shard")
                for batch in file.iter_batches(batch_size=1024, columns=_COLUMNS):
                    ids.append(batch.column("id").to_numpy())
                    for row in batch.to_pylist():
                        total.add(row)
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(
                f"{path} is damaged ({one_line(error)}): delete it and run the same command again, only its rows are "
                "done again"
            ) from error
    total.doubled = total.rows - len(np.unique(np.concatenate(ids)))
    return total


def write_categories(total: Tally, path: AnyPath) -> None:
    """Write `categories.parquet`: id, name (the phrase), supercategory (its most frequent head), count.

    Raises:
        SchemaError: Two phrases have the same id; for a million phrases that happens in about 6 of 100,000 datasets.
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
    """The rows (id, name, supercategory, count) of `categories.parquet`, in order of their ids."""
    heads: dict[str, Counter[str]] = {}
    for (phrase, head), count in total.categories.items():
        heads.setdefault(phrase, Counter())[head] += count
    return sorted(
        (stable_id(phrase), phrase, _most_frequent(counts), counts.total()) for phrase, counts in heads.items()
    )


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda head: (-counts[head], head))


def dataset_card(
    total: Tally,
    schema: Any,
    *,
    model: str,
    explainer: str,
    fitted_to: str | None,
    doubt: str | None = None,
    source: tuple[str, str] | None = None,
) -> str:
    """The README.md of a dataset: a YAML header with splits and features, then the figures and the columns.

    Args:
        total: The counts.
        schema: The columns.
        model: Its name.
        explainer: Its kind.
        fitted_to: The images that a calibration makes scores probabilities for, for people; None without one.
        doubt: How the images of the dataset differ from those, for people; None if no difference was noticed.
        source: Where the regions come from if not from heat maps, and what their score is, for people.
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
    return [
        {"name": entry.name, **({"dtype": "image"} if entry.name == "image" else _type(entry.type))} for entry in fields
    ]


def _type(kind: Any) -> dict[str, Any]:
    """A type in the words of `datasets`."""
    if pa.types.is_list(kind):
        inner = kind.value_type
        return {"list": _features(inner) if pa.types.is_struct(inner) else _type(inner)["dtype"]}
    if pa.types.is_struct(kind):
        return {"struct": _features(kind)}
    return {"dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind))}
