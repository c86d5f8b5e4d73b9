"""The parts of an export format: settings, samples, and functions that formats share."""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from phrasebox.pipeline.config.errors import Checked
from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.rows import Annotation, Row, mask_of
from phrasebox.pipeline.export.files import ExportFolder, ImageNames
from phrasebox.pipeline.export.report import RARE_BELOW, ExportReport
from phrasebox.stages.contract.kinds import KindTable
from phrasebox.stages.contract.masks import mask_outlines
from phrasebox.stages.images.decode import UprightImage

CategoryField = Annotated[
    Literal["phrase", "head"],
    Field(description="Categories: the phrases, or the far fewer head nouns."),
]
Per = Literal["phrase", "group"]
"""A region for each phrase of each caption, or one for each object with all its phrases."""

WITHIN_A_PIXEL: Final = 1.0
"""Tolerance in px of polygons that few corners describe. They take an eighth of the bytes of exact
ones, at an IoU with the mask of 0.993 on average and 0.975 at worst (1,500 synthetic masks of up to
1024 x 768)."""

WithImages = Annotated[
    bool,
    Field(
        description="Also write the images. Without them, file names are the dataset's, below its image root."
    ),
]

HOLES: Final = "masks with holes: filled, since polygons cannot say them"
NAMES: Final = "names.csv"  # Table of the images that are not written under their `file_name`
RENAMED_IMAGES: Final = f"images under another name than their own: {NAMES} says which"
PHRASE_KEYS: Final = ("phrase", "head", "caption_index", "span")
MOST_TOKENS: Final = 256  # of a text in MDETR, GLIP and Grounding DINO; the first one is a mark
BEYOND_TOKENS: Final = f"regions whose phrase ends behind {MOST_TOKENS} tokens of the text: readers lose it"
_WORD: Final = re.compile(r"\w+")
OBJECT_PHRASES: Final = (
    "named"  # Key of a merged region: dicts of `PHRASE_KEYS`, in the order of the captions
)


class FormatConfig(Checked):
    """Settings of a format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenSample:
    """A sample of the export.

    Attributes:
        row: The dataset's row, with only the chosen regions in `annotations`.
        split: Name of the split.
        image: The encoded image; None if the format takes none.
        per_group: Whether the regions are those of objects, see `merge_by_object`, and not those
            of phrases.
        unchosen_regions: Phrase and head of the row's other regions.
    """

    row: Row
    split: str
    image: UprightImage | None
    per_group: bool = False
    unchosen_regions: Sequence[Annotation] = ()

    @property
    def regions(self) -> list[Annotation]:
        """The chosen regions, as `annotations` of the schema."""
        return list(self.row["annotations"])

    @property
    def loaded_image(self) -> UprightImage:
        """The encoded image, in formats that take images."""
        if self.image is None:
            raise RuntimeError("the image was not loaded: Exporter.takes_images said that it is not needed")
        return self.image

    def texts(self) -> Iterator[tuple[int, str, list[tuple[Annotation, list[list[int]]]]]]:
        """Yield (number, text, regions with the spans of their phrases in the text).

        The texts are the captions with regions, or all captions if none has any. If the regions
        are those of objects, there is one text of all captions, since an object's phrases may be
        in several captions.
        """
        captions = self.row["captions"]
        if self.per_group:
            yield (
                0,
                join_captions(captions),
                [(region, join_spans(captions, region)) for region in self.regions],
            )
            return
        for index, caption in enumerate(captions):
            regions = [
                (region, [region["span"]]) for region in self.regions if region["caption_index"] == index
            ]
            if regions or not self.regions:
                yield index, caption, regions


class Categories:
    """Categories by name, with dense numbers, since torch detectors index by them.

    Attributes:
        names: Phrases or head nouns, sorted; the index of a category is its place here.
        heads: The most frequent head noun of each category: COCO's supercategory.
        name_of: Function: region -> name of its category.
        synonyms: Further names of the objects of each category. A name belongs to the category
            that it names most often, and no category is one.
        dropped_count: Number of names with fewer than `min_count` regions, which are no categories.
        rare: Number of categories with fewer than `RARE_BELOW` regions.
    """

    def __init__(
        self,
        counts: Counter[tuple[str, str]],
        category_field: CategoryField,
        min_count: int = 0,
        mentions: Mapping[tuple[str, str], int] = MappingProxyType({}),
    ) -> None:
        """`counts` are those of name and head, `mentions` those of name and further name."""
        totals: Counter[str] = Counter()
        for (name, _), count in counts.items():
            totals[name] += count
        self.dropped_count = sum(count < min_count for count in totals.values())
        self.rare = sum(min_count <= count < RARE_BELOW for count in totals.values())
        heads: dict[str, str] = {}
        for name, _, head in sorted((name, -count, head) for (name, head), count in counts.items()):
            if totals[name] >= min_count:
                heads.setdefault(name, head)
        self.names = [*heads]
        self.heads = [*heads.values()]
        self._index = {name: index for index, name in enumerate(self.names)}
        categories: dict[str, str] = {}
        for (name, mention), _ in sorted(mentions.items(), key=lambda counted: (-counted[1], counted[0])):
            if name in self._index and mention not in self._index:
                categories.setdefault(mention, name)
        self.synonyms: dict[str, list[str]] = {}
        for mention, name in sorted(categories.items()):
            self.synonyms.setdefault(name, []).append(mention)
        self.name_of = itemgetter(category_field)

    def index_of(self, region: Annotation) -> int:
        """Return the index of a chosen region's category."""
        return self._index[self.name_of(region)]

    def indices(self, names: Iterable[str]) -> set[int]:
        """Return the indices of the names that are categories."""
        return {self._index[name] for name in names if name in self._index}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """One export.

    Attributes:
        dataset: The dataset.
        folder: The folder to write to.
        splits: Names of the splits.
        categories: The categories; none in a format without the setting `classes`.
        report: The report, to which an exporter adds notes.
    """

    dataset: Dataset
    folder: ExportFolder
    splits: tuple[str, ...]
    categories: Categories
    report: ExportReport


class Exporter(ABC):
    """Write one export in a format: `add` for each sample in the dataset's order, then `close`.

    Memory must not grow with the number of samples. The same samples give the same bytes.

    Attributes:
        summary: One line: the files, and the programs that read them.
        masks: One line: how masks are written.
        next_step: One line: the command that uses the export, with `{out}`, `{split}`, `{images}`
            and `{config}`.
        keeps_empty: Whether a sample without regions can be written.
        needs_words: Whether regions without words in a caption (from a pool of concepts) are left
            out.
        takes_groups: Whether a region can be that of an object with several phrases.
        needs_images: Whether images are part of the format; otherwise the setting `images` decides.
        image_folder: The folder of image files, with `{split}`; "" if the format has none.
        flat_images: Whether the format's readers look for images in `image_folder` only, and in
            no folder below it.
        config_type: The settings of the format.
        notes: Notes of the report: what the format changes or leaves out -> how often.
        files: The file of each split, see `open_split`.
    """

    summary: ClassVar[str]
    masks: ClassVar[str]
    next_step: ClassVar[str]
    keeps_empty: ClassVar[bool] = True
    needs_words: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = True
    needs_images: ClassVar[bool] = False
    image_folder: ClassVar[str] = ""
    flat_images: ClassVar[bool] = False
    config_type: ClassVar[type[FormatConfig]] = FormatConfig

    def __init__(self, config: Any, job: ExportJob) -> None:
        self.config = config
        self.job = job
        self.notes = job.report.notes
        self._image_names: ImageNames | None = None
        self._names_table: Any = None
        if self.image_folder and self.takes_images(config):
            self._image_names = ImageNames(job.dataset, flat=self.flat_images)
            for split in job.splits:
                job.folder.make(self.image_folder.format(split=split))
        self.files = {split: self.open_split(split) for split in job.splits}

    @classmethod
    def describe(cls) -> str:
        """Return lines for people: the format's summary, masks, regions and settings."""
        keys = ", ".join(
            f"{key}={str(field.default).lower()}" for key, field in cls.config_type.model_fields.items()
        )
        settings = f"\n    --set: {keys}" if keys else ""
        per = cls.usual_per(cls.config_type())
        return f"{cls.summary}\n    masks: {cls.masks}\n    --per: {per} by default{settings}"

    @classmethod
    def takes_images(cls, config: Any) -> bool:
        """Return whether `add` needs the encoded images."""
        return cls.needs_images or bool(getattr(config, "images", False))

    @classmethod
    def category_field(cls, config: Any) -> CategoryField | None:
        """Return the field that names a region's category; None in formats without categories."""
        field: CategoryField | None = getattr(config, "classes", None)
        return field

    @classmethod
    def usual_per(cls, config: Any) -> Per:
        """Return the default of `--per`: objects in formats with categories, else phrases.

        A detector learns each object once, however often captions name it.
        """
        return "phrase" if cls.category_field(config) is None else "group"

    @classmethod
    def holds(cls, config: Any, row: Row) -> bool:
        """Return whether the format takes a row without regions, without a condition on regions."""
        return False

    def open_split(self, split: str) -> Any:
        """Return the file of a split, which `close` closes; None if the format has none."""
        return None

    def image_name(self, sample: ChosenSample) -> str:
        """Return the image's name below `image_folder`; write the image if the format takes it."""
        file_name: str = sample.row["file_name"]
        if sample.image is None or self._image_names is None:
            return file_name
        name = self._image_names.name_of(sample.row, sample.image.extension)
        path = f"{self.image_folder.format(split=sample.split)}/{name}"
        self.job.folder.file(path).write_bytes(sample.image.content)
        if name != file_name:
            if self._names_table is None:
                self._names_table = csv.writer(self.job.folder.text(NAMES), lineterminator="\n")
                self._names_table.writerow(["written", "file_name", "sample_id"])
            self._names_table.writerow([path, file_name, sample.row["sample_id"]])
            self.notes[RENAMED_IMAGES] += 1
        return name

    def written_regions(self, sample: ChosenSample) -> list[Annotation]:
        """Return the regions that `add` writes: all chosen ones, unless the format joins some."""
        return sample.regions

    @abstractmethod
    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""

    def close(self) -> None:
        """Write all remaining data. Not called after an error."""
        for file in filter(None, self.files.values()):
            file.close()


EXPORTERS: Final[KindTable[Exporter]] = KindTable("phrasebox.exporters")
"""The formats."""


def is_beyond_tokens(text: str, spans: Sequence[Sequence[int]]) -> bool:
    """Return whether a span ends behind `MOST_TOKENS`, if each word is only one token."""
    return any(len(_WORD.findall(text, 0, end)) >= MOST_TOKENS for _, end in spans)


def shorten_float(value: float) -> float:
    """Return a float32 with the fewest digits that identify it: 0.85, not 0.8500000238418579."""
    return float(str(np.float32(value)))


def polygons_of(region: Annotation, notes: Counter[str], tolerance_px: float = 0.0) -> list[list[float]]:
    """Return the outlines of a region's mask in px; the notes count masks with filled holes.

    Raise InputError as `mask_of`.
    """
    polygons, holes = mask_outlines(mask_of(region), tolerance_px)
    notes[HOLES] += bool(holes)
    return polygons


def join_captions(captions: Sequence[str]) -> str:
    """Return all captions of an image as one text, one on each line; see `join_spans`."""
    return "\n".join(captions)


def join_spans(captions: Sequence[str], region: Annotation) -> list[list[int]]:
    """Return the spans of a region's phrase, or of its object's phrases, in `join_captions`."""
    starts = list(accumulate((len(caption) + 1 for caption in captions), initial=0))
    phrases = region.get(OBJECT_PHRASES, (region,))
    return [[starts[phrase["caption_index"]] + edge for edge in phrase["span"]] for phrase in phrases]


def merge_by_object(regions: Sequence[Annotation]) -> list[Annotation]:
    """Merge the regions of one image by object: one box, several phrases.

    An object keeps the regions of the phrase with the best score, the first among equals. They
    get the `PHRASE_KEYS` of the name: of the phrases with the object's most frequent head, the
    one with the best score. They also get the key `OBJECT_PHRASES`. Without groups, each phrase
    of a caption is an object.
    """
    objects: dict[Any, dict[tuple[int, ...], list[Annotation]]] = {}
    for region in regions:
        place = (region["caption_index"], *region["span"])
        key = place if region["group"] is None else region["group"]
        objects.setdefault(key, {}).setdefault(place, []).append(region)
    merged_regions: list[Annotation] = []
    for places in objects.values():
        ranking = sorted(places.values(), key=lambda entries: -max(region["score"] for region in entries))
        heads = Counter(entries[0]["head"] for entries in places.values())
        name = min(ranking, key=lambda entries: -heads[entries[0]["head"]])[0]
        phrases = [{key: places[place][0][key] for key in PHRASE_KEYS} for place in sorted(places)]
        name_fields = {key: name[key] for key in PHRASE_KEYS}
        merged_regions.extend({**region, **name_fields, OBJECT_PHRASES: phrases} for region in ranking[0])
    return merged_regions
