"""The report of an export: what it wrote, what it left out, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from phrasebox.pipeline.dataset.rows import Annotation
from phrasebox.stages.contract.score_threshold import Threshold
from phrasebox.stages.contract.values import Json

RARE_BELOW: Final = 10  # Regions of a category; with fewer, it is too rare to learn or to measure


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """Counts of an export and of what it left out.

    Attributes:
        format: Name of the format.
        rows: Number of the dataset's rows: those of the samples and those left out.
        samples: Number of samples by split.
        regions: Number of regions by split.
        threshold: The least score of a precision or a share, and what it keeps; None without one.
        advice: A precision to ask for, where nothing was chosen by score and scores are
            probabilities; "" elsewhere.
        categories: Number of categories.
        rare: Number of categories with fewer than `RARE_BELOW` regions.
        left_out: Number of rows left out, by reason.
        faults: The first few image errors of rows left out.
        notes: Changes to masks and the like -> how often.
        images: Where the images are.
        next_step: `Exporter.next_step` with the paths of this export.
    """

    format: str
    rows: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    threshold: Threshold | None = None
    advice: str = ""
    categories: int = 0
    rare: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    images: str = ""
    next_step: str = ""

    def add(self, split: str, regions: Sequence[Annotation]) -> None:
        """Count a sample that was written, and its regions."""
        self.samples[split] += 1
        self.regions[split] += len(regions)

    def counts(self) -> Json:
        """Return plain values, in a fixed order."""
        return {
            "rows": self.rows,
            "samples": dict(self.samples),
            "regions": dict(self.regions),
            "threshold": self.threshold and asdict(self.threshold),
            "categories": self.categories,
            "rare": self.rare,
            "left_out": dict(sorted(self.left_out.items())),
            "notes": {note: count for note, count in sorted(self.notes.items()) if count},
        }

    def lines(self, masks: str) -> Iterator[str]:
        """Yield sentences for people, below the counts by split; `masks` is `Exporter.masks`."""
        if self.threshold is not None:
            yield self.threshold.in_words()
        if self.advice:
            yield self.advice
        yield f"masks: {masks}"
        yield from (f"{note} ({count:,})" for note, count in self.counts()["notes"].items())
        yield f"rows left out: {self.left_out.total():,} of {self.rows:,}"
        yield from (f"  {count:,} {reason}" for reason, count in self.left_out.most_common())
        yield from (f"    {fault}" for fault in self.faults)
        if self.categories:
            categories = "1 category" if self.categories == 1 else f"{self.categories:,} categories"
            rare = f", {self.rare:,} of them rare (fewer than {RARE_BELOW} regions)"
            yield f"{categories}{f'{rare}; --min-count N leaves out rare ones' if self.rare else ''}"
        yield f"images: {self.images}"
        if self.regions.total():
            yield f"next: {self.next_step}"
        else:
            yield "no region was chosen: there is nothing to train on"
