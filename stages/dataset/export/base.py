"""What a format has to say: its settings, what it does with masks, and how one sample is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from stages.dataset.export.categories import Categories, Naming
from stages.dataset.export.target import Target
from stages.dataset.folder import Dataset
from stages.images.decode import UprightImage


class Config(BaseModel):
    """Settings of a format."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenSample:
    """A sample that goes into the export.

    row      of the dataset, with only the chosen regions in `annotations`
    split    its split
    image    the encoded image, upright; None where the format takes none
    """

    row: Mapping[str, Any]
    split: str
    image: UprightImage | None

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

    def captions_with_regions(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """(caption index, its regions) of every caption, also of those without."""
        grouped: list[tuple[int, list[dict[str, Any]]]] = [(n, []) for n in range(len(self.row["captions"]))]
        for region in self.regions:
            grouped[region["caption_index"]][1].append(region)
        return grouped


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """What an export holds and what it left out. rows = samples + left out.

    rows        of the dataset
    samples     exported, by split
    regions     exported, by split
    categories  different ones; 0 where the format has none
    left_out    rows that are not in the export, by reason
    faults      the first few of the rows left out for their image, for people
    notes       what became of masks and the like, with how often
    """

    format: str
    rows: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
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
            "categories": self.categories,
            "left_out": dict(sorted(self.left_out.items())),
            "notes": {note: count for note, count in sorted(self.notes.items()) if count},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an exporter works with.

    splits      names, in order
    categories  of the chosen regions; empty where `naming` is None
    """

    dataset: Dataset
    target: Target
    splits: tuple[str, ...]
    categories: Categories
    report: ExportReport


class Exporter(ABC):
    """Writes samples in one format. Made once an export; `add` for every sample in the dataset's order, then `close`.

    Memory must not grow with the number of samples: what is not yet written stays in files or in small buffers.
    The same samples give the same bytes.

    summary      one line: what is written and who reads it
    masks        one line: what becomes of the masks
    keeps_empty  whether a sample without regions can be written
    config_type  the settings
    """

    summary: ClassVar[str]
    masks: ClassVar[str]
    keeps_empty: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = Config

    def __init__(self, config: Any, job: Job) -> None:
        self.config = config
        self.job = job

    @classmethod
    def naming(cls, config: Any) -> Naming | None:
        """What the categories are; None if the format has none."""
        return getattr(config, "classes", None)

    @classmethod
    def takes_images(cls, config: Any) -> bool:
        """Whether `add` needs the encoded images."""
        return bool(getattr(config, "images", False))

    @abstractmethod
    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left. Not called after an error."""

    def abandon(self) -> None:
        """Close files after an error; they are deleted."""
