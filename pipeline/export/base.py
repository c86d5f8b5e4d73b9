"""The parts of an export format: its settings, the samples it gets, its report, and functions that formats share."""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.dataset.folder import Dataset
from pipeline.export.files import ExportFolder, ImageNames
from stages.contract.errors import InputError
from stages.contract.masks import decode_mask, mask_outlines
from stages.contract.records import Rle
from stages.shared.images.decode import UprightImage

Naming = Annotated[
    Literal["phrase", "head"], Field(description="Categories: the phrases, or the far fewer head nouns.")
]
Per = Literal["phrase", "group"]
"""A region for each phrase of each caption, or one for each object with all its phrases."""

Tolerance = Annotated[float, Field(ge=0, le=100)]
"""Distance in px that polygons may keep from a mask's outline to save corners. With 1 they take an eighth of the bytes
of 0, at an IoU with the mask of 0.993 on average and 0.975 at worst (1,500 synthetic masks of up to 1024 x 768)."""

WithImages = Annotated[
    bool,
    Field(description="Also write the images. Without them, file names are the dataset's, below its image root."),
]

HOLES: Final = "masks with holes: filled, since polygons cannot say them"
NAMES: Final = "names.csv"  # Table of the images that are not written under their `file_name`
RENAMED: Final = f"images under another name than their own: {NAMES} says which"
PHRASE_KEYS: Final = ("phrase", "head", "caption_index", "span")
MOST_TOKENS: Final = 256  # that MDETR, GLIP and Grounding DINO take of a text; the first one is a mark
BEYOND_TOKENS: Final = f"regions whose phrase ends behind {MOST_TOKENS} tokens of the text: readers lose it"
_WORD: Final = re.compile(r"\w+")
RARE: Final = 10  # regions, below which a category is rare: too few to learn or to measure it
NAMED: Final = "named"
"""Key of a merged region: the phrases of its object, in the order of the captions, as dicts of `PHRASE_KEYS`."""


class FormatConfig(BaseModel):
    """Settings of a format."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenSample:
    """A sample of the export: the dataset's row, with only the chosen regions in `annotations`."""

    row: Mapping[str, Any]
    split: str
    image: UprightImage | None  # None if the format takes none
    per_group: bool = False  # the regions are those of objects, see `merged`, instead of those of phrases
    cut: Sequence[Mapping[str, Any]] = ()  # phrase and head of the row's regions that are not chosen

    @property
    def regions(self) -> list[dict[str, Any]]:
        """The chosen regions, as `annotations` of the schema."""
        regions: list[dict[str, Any]] = self.row["annotations"]
        return regions

    @property
    def encoded(self) -> UprightImage:
        """The encoded image, in formats that take images."""
        if self.image is None:
            raise RuntimeError("the image was not loaded: Exporter.takes_images said that it is not needed")
        return self.image

    def texts(self) -> Iterator[tuple[int, str, list[tuple[dict[str, Any], list[list[int]]]]]]:
        """Yield (number, text, regions with the spans of their phrases in it) for the texts of a grounding format.

        The texts are the captions that have regions, or all if no caption has any; or one text of all captions if the
        regions are those of objects, whose phrases stand in several captions.
        """
        captions = self.row["captions"]
        if self.per_group:
            yield 0, joined_caption(captions), [(region, joined_spans(captions, region)) for region in self.regions]
            return
        for index, caption in enumerate(captions):
            regions = [(region, [region["span"]]) for region in self.regions if region["caption_index"] == index]
            if regions or not self.regions:
                yield index, caption, regions


class Categories:
    """Categories by name, with dense numbers: torch detectors index by them, CLIPSelf ranks them.

    `names` are phrases or head nouns, sorted; a category's index is its place. `heads` holds the most frequent head
    noun of each, COCO's supercategory. `name_of` gives the name of a region's category. Names with fewer than
    `min_count` regions are `dropped`; `rare` is how many of the others have fewer than `RARE`.
    """

    def __init__(self, counts: Counter[tuple[str, str]], naming: Naming, min_count: int = 0) -> None:
        totals: Counter[str] = Counter()
        for (name, _), count in counts.items():
            totals[name] += count
        self.dropped = sum(count < min_count for count in totals.values())
        self.rare = sum(min_count <= count < RARE for count in totals.values())
        heads: dict[str, str] = {}
        for (name, head), _ in sorted(counts.items(), key=lambda counted: (counted[0][0], -counted[1], counted[0][1])):
            if totals[name] >= min_count:
                heads.setdefault(name, head)
        self.names = [*heads]
        self.heads = [*heads.values()]
        self._index = {name: index for index, name in enumerate(self.names)}
        self.name_of = itemgetter(naming)

    def index_of(self, region: Mapping[str, Any]) -> int:
        """Return the index of a chosen region's category."""
        return self._index[self.name_of(region)]

    def indices(self, names: Iterable[str]) -> set[int]:
        """Return the indices of those names that categories have."""
        return {self._index[name] for name in names if name in self._index}


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """Contents of an export and what it left out; rows of the dataset = samples + left out.

    `doubtful` is the number of regions with a score below 0.5; None if scores only rank, or a least score was given.
    `rare` is the number of categories with fewer than `RARE` regions.
    """

    format: str
    rows: int = 0
    samples: Counter[str] = field(default_factory=Counter)  # by split
    regions: Counter[str] = field(default_factory=Counter)  # by split
    doubtful: int | None = None
    categories: int = 0
    rare: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # rows by reason
    faults: list[str] = field(default_factory=list)  # the first few of the rows left out for their image
    notes: Counter[str] = field(default_factory=Counter)  # what became of masks and the like -> how often
    images: str = ""  # where the images are
    next_step: str = ""  # `Exporter.next_step` with the places of this export

    def counts(self) -> dict[str, Any]:
        """Return plain values, in a fixed order."""
        return {
            "rows": self.rows,
            "samples": dict(self.samples),
            "regions": dict(self.regions),
            "doubtful": self.doubtful,
            "categories": self.categories,
            "rare": self.rare,
            "left_out": dict(sorted(self.left_out.items())),
            "notes": {note: count for note, count in sorted(self.notes.items()) if count},
        }

    def lines(self, masks: str) -> Iterator[str]:
        """Yield sentences for people, below the counts by split; `masks` says what became of the masks."""
        if self.doubtful:
            regions = f"{self.doubtful:,} of {self.regions.total():,} regions"
            yield f"{regions} have a score below 0.5; --min-score 0.5 leaves them out"
        yield f"masks: {masks}"
        yield from (f"{note} ({count:,})" for note, count in self.counts()["notes"].items())
        yield f"rows left out: {self.left_out.total():,} of {self.rows:,}"
        yield from (f"  {count:,} {reason}" for reason, count in self.left_out.most_common())
        yield from (f"    {fault}" for fault in self.faults)
        if self.categories:
            advice = f", {self.rare:,} of them rare (fewer than {RARE} regions); --min-count N leaves out rare ones"
            categories = "1 category" if self.categories == 1 else f"{self.categories:,} categories"
            yield f"{categories}{advice if self.rare else ''}"
        yield f"images: {self.images}"
        if self.regions.total():
            yield f"next: {self.next_step}"
        else:
            yield "no region was chosen: there is nothing to train on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """One export. There are no categories if the format has no setting `classes`. Exporters add notes to the report."""

    dataset: Dataset
    folder: ExportFolder
    splits: tuple[str, ...]
    categories: Categories
    report: ExportReport


class Exporter(ABC):
    """Writes samples in one format, one export: `add` for each sample in the dataset's order, then `close`.

    Memory must not grow with the number of samples. The same samples give the same bytes.
    """

    name: ClassVar[str]  # in `--format`
    summary: ClassVar[str]  # one line: what is written and who reads it
    masks: ClassVar[str]  # one line: what becomes of the masks
    next_step: ClassVar[str]  # one line: what trains on it or loads it, with `{out}`, `{split}`, `{images}`, `{config}`
    keeps_empty: ClassVar[bool] = True  # a sample without regions can be written
    needs_words: ClassVar[bool] = False  # a region without words in a caption (from a pool of concepts) is left out
    takes_groups: ClassVar[bool] = True  # a region can be that of an object with several phrases
    needs_images: ClassVar[bool] = False  # images are part of the format; else the setting `images` decides
    image_folder: ClassVar[str] = ""  # folder of image files, with `{split}`; "" if the format has none
    flat_images: ClassVar[bool] = False  # the format's readers look for images in no folder below that
    config_type: ClassVar[type[FormatConfig]] = FormatConfig

    def __init__(self, config: Any, job: ExportJob) -> None:
        self.config = config
        self.job = job
        self._writers: list[Any] = []
        self._image_names: ImageNames | None = None
        self._renamed: Any = None
        if self.image_folder and self.takes_images(config):
            self._image_names = ImageNames(job.dataset, flat=self.flat_images)
            for split in job.splits:
                job.folder.make(self.image_folder.format(split=split))

    @classmethod
    def described(cls) -> str:
        """Return the format in lines for people: its name and summary, its masks, its regions, its settings."""
        keys = ", ".join(f"{key}={str(field.default).lower()}" for key, field in cls.config_type.model_fields.items())
        settings = f"\n    --set: {keys}" if keys else ""
        per = cls.usual_per(cls.config_type())
        return f"{cls.name}: {cls.summary}\n    masks: {cls.masks}\n    --per: {per} by default{settings}"

    @classmethod
    def takes_images(cls, config: Any) -> bool:
        """Return whether `add` needs the encoded images."""
        return cls.needs_images or bool(getattr(config, "images", False))

    @classmethod
    def naming(cls, config: Any) -> Naming | None:
        """Return what names the categories; None if the format has none."""
        naming: Naming | None = getattr(config, "classes", None)
        return naming

    @classmethod
    def usual_per(cls, config: Any) -> Per:
        """Return what has a region by default: an object in formats with categories, else a phrase of a caption.

        A detector learns each object once, however often captions name it.
        """
        return "phrase" if cls.naming(config) is None else "group"

    @classmethod
    def holds(cls, config: Any, row: Mapping[str, Any]) -> bool:
        """Return whether the format takes a row without regions, if no condition has chosen among them."""
        return False

    def for_splits(self, make: Callable[[str], Any]) -> dict[str, Any]:
        """Return a writer for each split, which is closed at the end, but not after an error."""
        writers = {split: make(split) for split in self.job.splits}
        self._writers += writers.values()
        return writers

    def image_name(self, sample: ChosenSample) -> str:
        """Write the image if images are written, and return its name for the export's entry, below `image_folder`."""
        own: str = sample.row["file_name"]
        if sample.image is None or self._image_names is None:
            return own
        name = self._image_names.name_of(sample.row, sample.image.extension)
        path = f"{self.image_folder.format(split=sample.split)}/{name}"
        self.job.folder.named(path).write_bytes(sample.image.content)
        if name != own:
            if self._renamed is None:
                self._renamed = csv.writer(self.job.folder.text(NAMES), lineterminator="\n")
                self._renamed.writerow(["written", "file_name", "sample_id"])
            self._renamed.writerow([path, own, sample.row["sample_id"]])
            self.job.report.notes[RENAMED] += 1
        return name

    def written(self, sample: ChosenSample) -> list[dict[str, Any]]:
        """Return the regions that `add` writes: all chosen ones, unless the format joins some."""
        return sample.regions

    @abstractmethod
    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""

    def close(self) -> None:
        """Write what is left. Not called after an error."""
        for writer in self._writers:
            writer.close()


def dumped(value: Any) -> str:
    """Return compact JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_beyond_tokens(text: str, spans: Sequence[Sequence[int]]) -> bool:
    """Return whether a span ends behind `MOST_TOKENS`, in any tokenizer: each word is at least one token."""
    return any(len(_WORD.findall(text, 0, end)) >= MOST_TOKENS for _, end in spans)


def shortest(value: float) -> float:
    """Return a float32 in the fewest digits that mean it: 0.85, not 0.8500000238418579."""
    return float(str(np.float32(value)))


def polygons_of(region: Mapping[str, Any], report: ExportReport, tolerance_px: float = 0.0) -> list[list[float]]:
    """Return the outlines of a region's mask in pixels, see `mask_outlines`; filled holes are counted in the report.

    Raise InputError as `mask_of`.
    """
    polygons, holes = mask_outlines(mask_of(region), tolerance_px)
    report.notes[HOLES] += bool(holes)
    return polygons


def mask_of(region: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a region. Raise InputError if it is damaged."""
    height, width = region["segmentation"]["size"]
    try:
        return decode_mask(Rle(size_hw=(height, width), counts=region["segmentation"]["counts"]))
    except ValueError as error:
        raise InputError(
            f"the mask of annotation {region['id']} is damaged ({error}); phrasebox validate shows what else is"
        ) from error


def joined_caption(captions: Sequence[str]) -> str:
    """Return all captions of an image as one text, each on a line of its own, in which spans count."""
    return "\n".join(captions)


def joined_spans(captions: Sequence[str], region: Mapping[str, Any]) -> list[list[int]]:
    """Return the spans of a region in the joined caption: that of its phrase, or those of all phrases of its object."""
    starts = list(accumulate((len(caption) + 1 for caption in captions), initial=0))
    return [[starts[one["caption_index"]] + edge for edge in one["span"]] for one in region.get(NAMED, (region,))]


def merged(regions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the regions of each object of one image, in the order of the objects: one box, several phrases.

    An object's regions are those of the phrase with the best score, the first of equals, and lead the others' where
    each phrase has its own (`regions.group=phrases`). It is called by the phrase with the best score of those with its
    most frequent head, whose `PHRASE_KEYS` they get, and the key `NAMED`. In datasets without groups, each phrase of a
    caption is an object.
    """
    objects: dict[Any, dict[tuple[int, ...], list[Mapping[str, Any]]]] = {}
    for region in regions:
        place = (region["caption_index"], *region["span"])
        key = place if region["group"] is None else region["group"]
        objects.setdefault(key, {}).setdefault(place, []).append(region)
    joined: list[dict[str, Any]] = []
    for places in objects.values():
        ranked = sorted(places.values(), key=lambda ours: -max(region["score"] for region in ours))
        heads = Counter(ours[0]["head"] for ours in places.values())
        name = min(ranked, key=lambda ours: -heads[ours[0]["head"]])[0]
        named = [{key: places[place][0][key] for key in PHRASE_KEYS} for place in sorted(places)]
        called = {key: name[key] for key in PHRASE_KEYS}
        joined.extend({**region, **called, NAMED: named} for region in ranked[0])
    return joined
