"""The sink: rows become Parquet shards. Beside them comes the dataset card.

The card has the form that the Hugging Face hub and `datasets.load_dataset` read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any, Final, NotRequired, TypedDict

import pyarrow as pa
import yaml

from phrasebox.stages.contract.caption_doubt import CaptionDoubt
from phrasebox.stages.contract.schema import IMAGE_FIELD
from phrasebox.stages.contract.score_threshold import PRECISIONS, Threshold, useful_threshold
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.parquet import RollingParquet
from phrasebox.stages.files.shards import ShardFile, with_origin, writing_shard
from phrasebox.stages.files.storage import AnyPath

ROW_GROUP_ROWS: Final = 1000
IMAGE_ROW_GROUP_ROWS: Final = (
    100  # A reader of one row reads a row group, which with images is then some 10 MB
)


def row_group_rows(columns: Collection[str]) -> int:
    """Return the rows of the row groups of a shard with these columns, whichever engine writes it."""
    return IMAGE_ROW_GROUP_ROWS if IMAGE_FIELD.name in columns else ROW_GROUP_ROWS


class ShardWriter(RollingParquet):
    """The shards of a dataset. A shard appears in the folder whole.

    Args:
        folder: The folder of the shards.
        rows_per_file: Most rows of a shard.
        confirm: Called before a shard takes its place. What it raises prevents that.
        name: Number of a shard, from 0 on -> the name of its file; by default numbers that go on
            from the highest in the folder.
        origin: What the shards say of their run, see `phrasebox.stages.files.shards`.
        on_written: Called with each shard in its place, and the sample ids of its rows.
    """

    def __init__(
        self,
        folder: AnyPath,
        rows_per_file: int,
        confirm: Callable[[], None] = lambda: None,
        *,
        name: Callable[[int], str] | None = None,
        origin: str = "",
        on_written: Callable[[ShardFile, list[str]], None] = lambda shard, sample_ids: None,
    ) -> None:
        super().__init__(self._open, rows_per_file=rows_per_file, rows_per_group=ROW_GROUP_ROWS)
        self._folder = folder
        self._confirm = confirm
        self._name = name or _numbered_after(folder)
        self._origin = origin
        self._on_written = on_written
        self._sample_ids: list[str] = []  # of the open file

    def write(self, table: Any) -> None:
        """Add rows, with smaller row groups if they hold images."""
        self._rows_per_group = row_group_rows(table.column_names)
        super().write(with_origin(table, self._origin))

    def _open(self, number: int) -> AbstractContextManager[IO[bytes]]:
        sample_ids: list[str] = []
        self._sample_ids = sample_ids
        path = self._folder / self._name(number)
        return writing_shard(path, lambda shard: self._on_written(shard, sample_ids), self._confirm)

    def _write_group(self, table: Any) -> None:
        super()._write_group(table)
        self._sample_ids += table["sample_id"].to_pylist()


def _numbered_after(folder: AnyPath) -> Callable[[int], str]:
    """Return the names of shards whose numbers go on from the highest in a folder."""
    stems = (path.stem for path in folder.glob("*.parquet"))
    first = 1 + max((int(stem) for stem in stems if stem.isdigit()), default=-1)
    return lambda number: f"{first + number:05d}.parquet"


@dataclass(slots=True)
class Tally:
    """Rows and regions of a dataset.

    No row is lost: rows = annotated + without_phrases + failed.

    Attributes:
        annotated: Rows with a phrase.
        without_regions: Rows with a phrase and without a region.
        thresholds: Those of `PRECISIONS` that a score reaches, if scores are probabilities.
        highest_precision: That of the regions with the highest score.
        absent: Phrases judged not to be in their image.
        other_language: Rows with a caption in another language than the run's.
        unread_language: Rows with a caption in a language that the model does not read.
        unparsed: "de: de_core_news_sm", a language and its missing parser -> captions left out.
        categories: Different phrases of regions.
        doubt: Why most captions are doubtful; None if they are not.
    """

    files: int = 0
    rows: int = 0
    annotated: int = 0
    without_regions: int = 0
    without_phrases: int = 0
    failed_by_reason: Counter[str] = field(default_factory=Counter)
    phrases: int = 0
    regions: int = 0
    thresholds: tuple[Threshold, ...] = ()
    highest_precision: float = 0.0
    absent: int = 0
    other_language: int = 0
    unread_language: int = 0
    unparsed: Counter[str] = field(default_factory=Counter)
    categories: int = 0
    doubt: CaptionDoubt | None = None

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return self.failed_by_reason.total()

    @property
    def advised(self) -> Threshold | None:
        """The threshold that advice names, if scores are probabilities; None if the table is empty."""
        return useful_threshold(self.thresholds)

    @property
    def advised_in_words(self) -> str:
        """What is right above the advised threshold, as the rest of a sentence about images like the fit's."""
        if self.advised is None:
            return f"a score is the share of such regions that are right, here at most {self.highest_precision:.0%}"
        return (
            f"about {self.advised.precision:.0%} of the regions with a score of {self.advised.score:.3f} or more are "
            f"right; {self.advised.share:.0%} of all regions here have it"
        )

    @property
    def unreached_in_words(self) -> str:
        """The precisions of the table that no score reaches, and the highest one; "" if a score reaches all."""
        unreached = PRECISIONS[len(self.thresholds) :]
        if not unreached:
            return ""
        precisions = ", ".join(map(str, unreached))
        return f"No score reaches a precision of {precisions}: the highest is {self.highest_precision:.2f}."

    def counts(self) -> Json:
        """Return the part of the manifest's `counts` that the shards determine."""
        names = (
            "annotated",
            "without_regions",
            "without_phrases",
            "failed",
            "phrases",
            "regions",
            "absent",
        )
        return {
            "written": self.rows,
            **{name: getattr(self, name) for name in (*names, "files", "categories")},
            "failed_by_reason": dict(sorted(self.failed_by_reason.items())),
        }


class ScoreOrigin(TypedDict):
    """What `dataset.json` says of the scores, see `CardOrigin`."""

    fitted_to: str | None
    doubt: str | None
    presence: str | None
    estimated_margin: NotRequired[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOrigin:
    """The origin of a dataset's regions and scores, for its card.

    Attributes:
        model: The model's name.
        precision: The model's; None if that is not known.
        explainer: The explainer's name.
        about_model: The purpose of a bundled model, as the rest of a sentence behind its name.
        fitted_to: The images of the calibration, in words; None without a calibration.
        doubt: The difference of the dataset's images from these, in words.
        presence: The images of a calibration of presence alone, in words.
        estimated_margin: How much too high estimated scores were on models that the fit had not seen; None for
            scores of a calibration to this model.
        source: The origin of regions without heat maps, and the meaning of their score, in
            words.
        has_boxes: Whether boxes that came with the input lie over the regions of heat maps.
    """

    model: str
    precision: str | None
    explainer: str
    fitted_to: str | None
    about_model: str = ""
    doubt: str | None = None
    presence: str | None = None
    estimated_margin: float | None = None
    source: tuple[str, str] | None = None
    has_boxes: bool = False

    def regions(self) -> str:
        """Return the origin of the regions, as the end of a sentence."""
        if self.source is not None:
            return self.source[0]
        maps = f"one {self.explainer} heat map per phrase,\nboxes and masks from the heat maps"
        given = (
            ";\nfor phrases that it answers, a box of the input, unchanged (`bbox_of` is given)"
            if self.has_boxes
            else ""
        )
        return maps + given

    @property
    def licence(self) -> str:
        """Sentence about the model's licence."""
        about = f": `{self.model}` {self.about_model}" if self.about_model else "."
        return f"The licence of the model holds too{about}"

    def scores(self, total: Tally) -> str:
        """Return sentences about the meaning of scores; `total` counts the dataset."""
        if self.estimated_margin is not None:
            care = f" {self.doubt}." if self.doubt else ""
            meaning = (
                f"Scores are estimated by {self.fitted_to}.\nOn models that the fit had not seen they were up to "
                f"{self.estimated_margin:g} too high. With that margin\n{total.advised_in_words}.\nA region is right "
                "with a box IoU of 0.5 or more. `phrasebox eval` measures the scores if boxes are known, and so does a "
                f"review.{care}"
            )
        elif self.fitted_to is not None:
            care = f" {self.doubt}." if self.doubt else ""
            meaning = (
                f"Scores are calibrated on {self.fitted_to}:\non images like those, {total.advised_in_words}.\nA "
                "region is right with a box IoU of 0.5 or more. On other images a score can be far too high or too "
                "low:\n`phrasebox eval` measures that if boxes are known, and `phrasebox calibrate` fits\n"
                f"scores to them.{care}"
            )
        elif self.source is not None:
            meaning = f"A score is {self.source[1]}."
        else:
            meaning = "A score only ranks: it is not the probability of being right."
        if self.presence is None:
            return meaning
        return f"{meaning}\n`presence`, by which it is multiplied, was fitted to {self.presence}."


WEAKNESSES: Final = (
    "Nobody has checked every region. Look at some, and filter by `score`, before you train on them.",
    "Boxes are rough. Plurals often get one region for several objects, and small objects are often missed.",
    "A phrase may name what is not in the image. `presence` says so only in part, and hardly for a wrong colour.",
    "Phrases were found by rules: F1 on exact spans is about 94 % in English and lower in other languages.",
)
"""What is wrong with regions, in sentences for people who train on them."""

CARD: Final = """---
{header}---

# Regions for the phrases of captions

Boxes, masks and scores for the noun phrases of image captions: training data for phrase grounding and open-vocabulary
detection. Made by phrasebox with the model {model}.
{doubt}
## How it was made

Noun phrases of the captions, {regions}.
`dataset.json` has the configuration, and the versions of the libraries that made the rows.

## Scores

{scores}
{thresholds}
## Known weaknesses

{weaknesses}

## Licence

The licence of the images and captions is that of their source. {licence}

## How to load

```python
import datasets

rows = datasets.load_dataset("OWNER/NAME", split="train")  # or the path of this folder
```

## Content

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

## Citation

Cite the source of the images and captions, and Grad-ECLIP for the heat maps (https://arxiv.org/abs/2502.18816).
"""


def dataset_card(total: Tally, schema: Any, origin: CardOrigin) -> str:
    """Return the README.md of a dataset: a YAML header with splits and features, then the figures and the columns.

    `schema` is the Arrow schema of the shards.
    """
    precision = "" if origin.precision is None else f" in {origin.precision}"
    header = {
        "task_categories": ["object-detection", "image-segmentation"],
        "tags": ["phrase-grounding", "grad-eclip", "phrasebox"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
        ],
        "dataset_info": {"features": _features(schema)},
    }
    columns = "\n".join(f"| `{entry.name}` | {_doc(entry)} |" for entry in schema)
    fields = "\n".join(
        f"| `{entry.name}` | {_doc(entry)} |" for entry in schema.field("annotations").type.value_type
    )
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        model=f"`{origin.model}`{precision}",
        regions=origin.regions(),
        scores=origin.scores(total),
        doubt="" if total.doubt is None else total.doubt.markdown(),
        thresholds="" if origin.fitted_to is None or origin.doubt else _threshold_table(total),
        weaknesses="\n".join(f"- {sentence}" for sentence in WEAKNESSES),
        licence=origin.licence,
        total=total,
        columns=columns,
        fields=fields,
    )


def _threshold_table(total: Tally) -> str:
    lines = [
        f"| {threshold.goal:g} | {threshold.score:.3f} | {threshold.regions:,} ({threshold.share:.0%}) |\n"
        for threshold in total.thresholds
    ]
    table = (
        "\n| precision | score at least | regions kept |\n|---|---|---|\n" + "".join(lines) if lines else ""
    )
    return table + (f"\n{total.unreached_in_words}\n" if total.unreached_in_words and total.regions else "")


def _doc(entry: Any) -> str:
    metadata = entry.metadata or {}
    doc, unit = (metadata.get(key, b"").decode() for key in (b"doc", b"unit"))
    return f"{doc} ({unit})" if unit else doc


def _features(fields: Any) -> list[Json]:
    types = {
        entry.name: {"dtype": "image"} if entry.name == "image" else _type(entry.type) for entry in fields
    }
    return [{"name": name, **kind} for name, kind in types.items()]


def _type(kind: Any) -> Json:
    """Return a type in the words of `datasets`."""
    if pa.types.is_list(kind):
        inner = kind.value_type
        return {"list": _features(inner) if pa.types.is_struct(inner) else dtype_of(inner)}
    return {"struct": _features(kind)} if pa.types.is_struct(kind) else {"dtype": dtype_of(kind)}


def dtype_of(kind: Any) -> str:
    """Return the name that `datasets` has for an Arrow type of single values."""
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
