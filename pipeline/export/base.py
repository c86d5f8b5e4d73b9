"""What a format is: its settings, what becomes of masks, how a sample is written; and what formats have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.dataset.folder import Dataset
from pipeline.export.files import ExportFolder
from pipeline.export.per_group import NAMED, joined_caption, joined_spans
from stages.contract.errors import InputError
from stages.contract.masks import decode_mask, mask_outlines
from stages.contract.records import Rle
from stages.shared.images.decode import UprightImage
from stages.write import Tally, category_rows

Naming = Literal["phrase", "head"]
"""Whether the categories are the phrases, or only their head nouns: thousands instead of hundred thousands."""

Tolerance = Annotated[float, Field(ge=0, le=100)]
"""How far polygons may run from a mask's outline to save corners, px; 0 keeps every corner of a pixel. With 1 they take
an eighth of the bytes, at an IoU with the mask of .993 on average and .975 at worst (1,500 synthetic masks of up to
1024 x 768 without holes)."""

HOLES: Final = "masks with holes: filled, since polygons cannot say them"


class FormatConfig(BaseModel):
    """Settings of a format."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenSample:
    """A sample that goes into the export.

    Attributes:
        row: Of the dataset, with only the chosen regions in `annotations`.
        split: The split it belongs to.
        per_group: Whether the regions are those of things, see `per_group.merged`, instead of those of phrases.
        image: The encoded image, upright; None where the format takes none.
    """

    row: Mapping[str, Any]
    split: str
    image: UprightImage | None
    per_group: bool = False

    @property
    def regions(self) -> list[dict[str, Any]]:
        """The chosen regions, as `annotations` of the schema."""
        regions: list[dict[str, Any]] = self.row["annotations"]
        return regions

    @property
    def encoded(self) -> UprightImage:
        """The encoded image, where the format takes images."""
        if self.image is None:
            raise RuntimeError("the image was not loaded: Exporter.takes_images said that it is not needed")
        return self.image

    def captions_with_regions(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Gives (caption index, its regions) for the captions that have regions; for all if none has."""
        for index in range(len(self.row["captions"])):
            regions = [region for region in self.regions if region["caption_index"] == index]
            if regions or not self.regions:
                yield index, regions

    def texts(self) -> Iterator[tuple[int, str, list[tuple[dict[str, Any], list[list[int]]]]]]:
        """Gives (number, text, regions with the spans of their phrases in it) for the texts of a grounding format.

        The texts are `captions_with_regions`; or one text of all captions where the regions are those of things, whose
        phrases stand in several captions.
        """
        captions = self.row["captions"]
        if self.per_group:
            yield 0, joined_caption(captions), [(region, joined_spans(captions, region)) for region in self.regions]
            return
        for index, regions in self.captions_with_regions():
            yield index, captions[index], [(region, [region["span"]]) for region in regions]


class Categories:
    """Categories by name, with dense numbers: torch detectors index by them, CLIPSelf ranks them.

    Holds an entry for each category and none for a region.

    Attributes:
        names: Phrases or head nouns, sorted; a category's index is its place. Formats that count from 1 add it.
        heads: The most frequent head noun of each, COCO's supercategory.
    """

    def __init__(self, counts: Counter[tuple[str, str]], naming: Naming) -> None:
        """Numbers the names of the (name, head) that were counted."""
        rows = sorted((name, head) for _, name, head, _ in category_rows(Tally(categories=counts)))
        self.names = [name for name, _ in rows]
        self.heads = [head for _, head in rows]
        self._naming = naming
        self._index = {name: index for index, name in enumerate(self.names)}

    def name_of(self, region: Mapping[str, Any]) -> str:
        """Name of the category of a region, from its `phrase` and `head`."""
        name: str = region[self._naming]
        return name

    def index_of(self, region: Mapping[str, Any]) -> int:
        """Index of the category of a chosen region."""
        return self._index[self.name_of(region)]


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """What an export holds and what it left out; rows = samples + left out.

    Attributes:
        format: Name of the format.
        rows: Of the dataset.
        samples: Exported, by split.
        regions: Exported, by split.
        doubtful: How many of these have a score below 0.5; None if scores only rank, or a least score was asked for.
        categories: How many there are; 0 where the format has none.
        left_out: Rows that are not in the export, by reason.
        faults: The first few of the rows left out for their image, for people.
        notes: What became of masks and the like, with how often.
    """

    format: str
    rows: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    doubtful: int | None = None
    categories: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """Plain values, in a fixed order."""
        return {
            "rows": self.rows,
            "samples": dict(self.samples),
            "regions": dict(self.regions),
            "doubtful": self.doubtful,
            "categories": self.categories,
            "left_out": dict(sorted(self.left_out.items())),
            "notes": {note: count for note, count in sorted(self.notes.items()) if count},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """What an exporter works with.

    Attributes:
        dataset: What is exported.
        folder: Where to.
        splits: Names, in order.
        categories: Of the chosen regions; empty where `Exporter.naming` is None.
        report: Exporters add notes to it.
    """

    dataset: Dataset
    folder: ExportFolder
    splits: tuple[str, ...]
    categories: Categories
    report: ExportReport


class SplitWriter(Protocol):
    """What writes the files of one split."""

    def close(self) -> None:
        """Completes the files."""

    def abandon(self) -> None:
        """Closes the files as they are, after an error; they are deleted."""


WriterT = TypeVar("WriterT", bound=SplitWriter)


class Exporter(ABC):
    """Writes samples in one format, one export: `add` for each sample in the dataset's order, then `close`.

    Memory must not grow with the number of samples: what is not yet written stays in files or in small buffers.
    The same samples give the same bytes.

    Attributes:
        name: What `--format` calls it.
        summary: One line: what is written and who reads it.
        masks: One line: what becomes of the masks.
        keeps_empty: Whether a sample without regions can be written.
        needs_words: Whether a region without words in a caption, which a pool of concepts has named, is left out.
        takes_groups: Whether a region can be that of a thing with several phrases.
        needs_images: Whether images are part of the format; else the setting `images` decides, if there is one.
        config_type: The settings.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    masks: ClassVar[str]
    keeps_empty: ClassVar[bool] = True
    needs_words: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = True
    needs_images: ClassVar[bool] = False
    config_type: ClassVar[type[FormatConfig]] = FormatConfig

    def __init__(self, config: Any, job: ExportJob) -> None:
        self.config = config
        self.job = job
        self._writers: list[SplitWriter] = []

    @classmethod
    def naming(cls, config: Any) -> Naming | None:
        """What the categories are; None if the format has none."""
        return getattr(config, "classes", None)

    @classmethod
    def takes_images(cls, config: Any) -> bool:
        """Whether `add` needs the encoded images."""
        return cls.needs_images or bool(getattr(config, "images", False))

    @classmethod
    def holds(cls, config: Any, row: Mapping[str, Any]) -> bool:
        """Whether the format has something to say of a row without regions, if no condition has chosen among them."""
        return False

    def for_splits(self, make: Callable[[str], WriterT]) -> dict[str, WriterT]:
        """A writer for each split, which `close` and `abandon` then close."""
        writers = {split: make(split) for split in self.job.splits}
        self._writers += writers.values()
        return writers

    @abstractmethod
    def add(self, sample: ChosenSample) -> None:
        """Writes one sample."""

    def close(self) -> None:
        """Writes what is left. Not called after an error."""
        for writer in self._writers:
            writer.close()

    def abandon(self) -> None:
        """Closes the files after an error; they are deleted."""
        for writer in self._writers:
            writer.abandon()


class JsonLines:
    """A file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def add(self, value: Any) -> None:
        """Writes a line."""
        self._file.write(dumped(value) + "\n")

    def close(self) -> None:
        """Closes the file, complete or not."""
        self._file.close()

    abandon = close


def dumped(value: Any) -> str:
    """Compact JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def phrase_entry(region: Mapping[str, Any]) -> dict[str, Any]:
    """What the dataset knows of a region and COCO has no name for.

    Without `presence` and `group` where they are unknown. `phrases` are all those of a thing, in an export by things.
    """
    known = {name: region[name] for name in ("presence", "group") if region[name] is not None}
    if "presence" in known:
        known["presence"] = shortest(known["presence"])
    if NAMED in region:
        known["phrases"] = region[NAMED]
    return {
        "phrase": region["phrase"],
        "head": region["head"],
        "caption_index": region["caption_index"],
        "span": region["span"],
        "score": shortest(region["score"]),
        "similarity": shortest(region["similarity"]),
        **known,
    }


def shortest(value: float) -> float:
    """A float32 in the fewest digits that mean it: 0.85, not 0.8500000238418579."""
    return float(str(np.float32(value)))


def polygons_of(region: Mapping[str, Any], report: ExportReport, tolerance_px: float = 0.0) -> list[list[float]]:
    """The outlines of a region's mask in pixels, see `mask_outlines`; filled holes are counted in the report.

    Raises:
        InputError: The mask is damaged.
    """
    height, width = region["segmentation"]["size"]
    try:
        mask = decode_mask(Rle(size_hw=(height, width), counts=region["segmentation"]["counts"]))
    except ValueError as error:
        raise InputError(
            f"the mask of annotation {region['id']} is damaged ({error}); phrasebox validate shows what else is"
        ) from error
    polygons, holes = mask_outlines(mask, tolerance_px)
    report.notes[HOLES] += bool(holes)
    return polygons
