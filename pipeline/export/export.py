"""From a dataset to a folder in another format: choose, split, write, report."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from phrasebox.pipeline.dataset.corrected import UNKNOWN_REGIONS, Corrections
from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.origin import ImageSource
from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.dataset.score_choice import RegionChoice, advice, count_scores
from phrasebox.pipeline.dataset.selection import REGION, Selector
from phrasebox.pipeline.export.base import (
    EXPORTERS,
    OBJECT_PHRASES,
    PHRASE_KEYS,
    Categories,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    Per,
    merge_by_object,
)
from phrasebox.pipeline.export.files import ExportFolder, export_folder
from phrasebox.pipeline.export.report import ExportReport
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.contract.schema import DATASET_SCHEMA, IMAGE_FIELD, is_said
from phrasebox.stages.contract.values import Json
from phrasebox.stages.images.decode import UprightImage, upright_image

WITH_ERROR: Final = "with an error in the dataset"
WITHOUT_REGIONS: Final = "without a chosen region"
RARE_CATEGORIES: Final = "categories with fewer regions than --min-count: left out"
RARE_REGIONS: Final = "regions of categories with fewer regions than --min-count: left out"
JOINED_MENTIONS: Final = (
    "further mentions of regions, joined: one annotation for each object; --per phrase writes every mention"
)
UNSAID_REGIONS: Final = "regions that no caption says: left out"
TURNED_IMAGES: Final = "images encoded again: readers would not turn them upright, or take no GIF"
ONLY_SPLIT: Final = "train"  # Name of the only split: loaders look for it first

_SHARE: Final = re.compile(r"\s*([A-Za-z0-9_]{1,64})\s*=\s*([0-9]*\.?[0-9]+)\s*")
"""A split and its share.

The name suits files on every system, and splits of Hugging Face datasets.
"""

_IDS: Final = 2**53
_MOST_FAULTS: Final = 5


class ExportRequest(RegionChoice, arbitrary_types_allowed=True):
    """A choice of samples and regions, a format and a new folder.

    Attributes:
        exporter: The format.
        out: The new folder.
        config: Settings of the format; None for its defaults.
        per: "phrase" or "group", see `Per`; None for the `usual_per` of the format.
        min_count: Categories with fewer chosen regions are left out.
        split: Shares of the images, "train=0.9,val=0.1"; "" puts all into "train".
        keep_empty: Also export samples without a chosen region; such images may still show objects.
        image_root: Folder or URL of the images, see `ImageSource`.
        overwrite: Replace the export in `out`; only files that an export wrote are deleted.
    """

    exporter: type[Exporter]
    out: Path
    config: FormatConfig | None = None
    per: Per | None = None
    min_count: int = 0
    split: str = ""
    keep_empty: bool = False
    image_root: str | None = None
    overwrite: bool = False


def export_dataset(
    dataset: Dataset, request: ExportRequest, on_progress: Callable[[int], None] = lambda rows: None
) -> ExportReport:
    """Write the chosen part of a finished dataset in another format.

    Rows with a missing or broken image are left out.

    Args:
        dataset: The dataset.
        request: The choice, the format and the folder.
        on_progress: Function that gets the number of rows that are done.

    Returns:
        The counts of the export, and of what it left out.

    Raises:
        ConfigError: The condition or the splits are invalid, the folder holds something, or another
            user's dataset names images outside its folder.
        InputError: A shard is damaged, the image root is no folder, or no image can be read.

    >>> from pathlib import Path
    >>> from phrasebox.pipeline.dataset import open_dataset
    >>> from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset
    >>> request = ExportRequest(exporter=EXPORTERS["coco"], out=Path("coco"), split="train=0.5,val=0.5")
    >>> report = export_dataset(open_dataset("out/"), request)
    >>> report.samples.total() + report.left_out.total() == report.rows
    True
    >>> sorted(path.name for path in Path("coco/annotations").iterdir())
    ['instances_train.json', 'instances_val.json']
    """
    export = _Export(dataset, request)
    report = export.report
    with export_folder(request.out, overwrite=request.overwrite) as folder:
        exporter = export.open(folder)
        for sample in export.samples(exporter, on_progress):
            exporter.add(sample)
            report.add(sample.split, exporter.written_regions(sample))
        exporter.close()
        if report.faults and not report.samples.total():
            raise InputError(f"no image can be read; --images says where they are. {report.faults[0]}")
        export.add_next_step()
        folder.finish(export.settings())
    return report


class _Export:
    """A request that was checked, and the report of its export."""

    def __init__(self, dataset: Dataset, request: ExportRequest) -> None:
        self.dataset = dataset
        self.request = request
        self.format = request.exporter
        self.format_name = EXPORTERS.name_of(request.exporter)
        self.config = request.config or self.format.config_type()
        self.category_field = self.format.category_field(self.config)
        self.per = request.per or self.format.usual_per(self.config)
        self.takes_images = self.format.takes_images(self.config)
        self.names_synonyms = getattr(self.config, "synonyms", False)
        self._check_format()
        self.splits = parse_splits(request.split)
        selection = dataset.selection(request)
        self.selector = Selector(selection)
        self.corrections = Corrections(dataset)
        self.source = ImageSource(dataset, request.image_root)
        if self.takes_images:
            self._check_source()
        has_advice = dataset.has_probabilities and not request.is_by_score
        empty = dict.fromkeys(self.splits, 0)
        self.report = ExportReport(
            format=self.format_name,
            samples=Counter(empty),
            regions=Counter(empty),
            threshold=selection.threshold,
            advice=advice(count_scores(dataset, selection)) if has_advice else "",
        )

    def _check_format(self) -> None:
        """Raise ConfigError if the format cannot hold what is requested."""
        name = self.format_name
        if self.request.keep_empty and not self.format.keeps_empty:
            raise ConfigError(f"{name} cannot hold a sample without regions", key="keep_empty")
        if self.per == "group" and not self.format.takes_groups:
            raise ConfigError(
                f"{name} has a region for each phrase of a caption, not for each object", key="per"
            )
        if self.names_synonyms and self.per == "phrase":
            raise ConfigError("synonyms are further names of an object: they need --per group", key="per")
        if self.request.min_count and self.category_field is None:
            raise ConfigError(f"{name} has no categories with these settings", key="min_count")

    def _check_source(self) -> None:
        """Raise ConfigError if the images' folder is unknown or only another user names it."""
        if self.source.root is None and not self.dataset.has_images:
            raise ConfigError(
                f"{self.format_name} takes images, but the dataset holds none and does not say "
                "in which folder they are",
                key="image_root",
            )
        self.source.check()

    def open(self, folder: ExportFolder) -> Exporter:
        """Count the categories, and return the exporter that writes into a folder."""
        categories = self._count_categories()
        report = self.report
        report.categories = len(categories.names)
        report.rare = categories.rare
        report.notes[RARE_CATEGORIES] += categories.dropped_count
        splits = tuple(self.splits)
        job = ExportJob(
            dataset=self.dataset, folder=folder, splits=splits, categories=categories, report=report
        )
        return self.format(self.config, job)

    def _count_categories(self) -> Categories:
        """Count the chosen regions by category and head; only the needed columns are read."""
        counts: Counter[tuple[str, str]] = Counter()
        mentions: Counter[tuple[str, str]] = Counter()
        if (field := self.category_field) is not None:
            fields = (*PHRASE_KEYS, "group", "score") if self.per == "group" else PHRASE_KEYS
            columns = dict.fromkeys([*(REGION + name for name in fields), *self.selector.selection.columns])
            for _, rows in self._corrected_tables(list(columns), Counter()):
                for row in rows:
                    regions = self._regions_of(row, Counter())
                    counts.update((region[field], region["head"]) for region in regions)
                    for region in regions if self.names_synonyms else ():
                        phrases = region.get(OBJECT_PHRASES, ())
                        mentions.update((region[field], phrase[field]) for phrase in phrases)
        return Categories(counts, self.category_field or "phrase", self.request.min_count, mentions)

    def _regions_of(self, row: Row, notes: Counter[str]) -> list[Annotation]:
        """Return the chosen regions that the format can hold, or with `per="group"` the objects."""
        regions: list[Annotation] = row["annotations"]
        if self.format.needs_words:
            count = len(regions)
            regions = [region for region in regions if is_said(region)]
            notes[UNSAID_REGIONS] += count - len(regions)
        if self.per == "group":
            count = len(regions)
            regions = merge_by_object(regions)
            notes[JOINED_MENTIONS] += count - len(regions)
        return regions

    def samples(self, exporter: Exporter, on_progress: Callable[[int], None]) -> Iterator[ChosenSample]:
        """Yield the samples of the export, and report the rows that are left out."""
        categories = exporter.job.categories
        for row, unchosen_regions in self._rows(on_progress):
            regions = self._regions_of(row, self.report.notes)
            if self.request.min_count:
                count = len(regions)
                regions = [region for region in regions if categories.indices([categories.name_of(region)])]
                self.report.notes[RARE_REGIONS] += count - len(regions)
            row["annotations"] = regions
            if (reason := self._reason_to_leave_out(row)) is not None:
                self.report.left_out[reason] += 1
                continue
            try:
                image = self._image(row) if self.takes_images else None
            except RowFault as fault:
                self.report.left_out[f"image: {fault.error.reason}"] += 1
                if len(self.report.faults) < _MOST_FAULTS:
                    self.report.faults.append(f"{row['sample_id']}: {fault}")
                continue
            yield ChosenSample(
                row=row,
                split=self.splits.of(image_of(row)),
                image=image,
                per_group=self.per == "group",
                unchosen_regions=unchosen_regions,
            )

    def _corrected_tables(
        self, columns: Sequence[str], notes: Counter[str]
    ) -> Iterator[tuple[Any, list[Row]]]:
        """Yield the dataset's tables with corrected boxes, and their rows with the chosen regions.

        Deleted regions stay in the tables, but not in the rows. `notes` count the corrections of
        chosen regions, and those that match no region in the dataset.
        """
        notes[UNKNOWN_REGIONS] += len(self.corrections.by_key)
        for table in self.dataset.tables(self.corrections.columns(columns)):
            corrected = self.corrections.correct(table)
            notes[UNKNOWN_REGIONS] -= len(corrected.notes)
            yield corrected.table, corrected.choose(self.selector, notes).to_pylist()

    def _rows(self, on_progress: Callable[[int], None]) -> Iterator[tuple[Row, list[Annotation]]]:
        """Yield rows with their chosen regions; and id, phrase and head of unchosen regions."""
        columns = list(DATASET_SCHEMA.names)
        if self.takes_images and self.dataset.has_images:
            columns.append(IMAGE_FIELD.name)
        for table, rows in self._corrected_tables(columns, self.report.notes):
            for row, regions in zip(rows, _names(table), strict=True):
                self.report.rows += 1
                chosen_ids = {region["id"] for region in row["annotations"]}
                yield row, [region for region in regions if region["id"] not in chosen_ids]
            on_progress(self.report.rows)

    def _reason_to_leave_out(self, row: Row) -> str | None:
        if row["error"] is not None:
            return WITH_ERROR
        # A condition asks for regions, and such a row has none that fulfils it.
        holds_empty = not self.request.where.strip() and self.format.holds(self.config, row)
        return None if row["annotations"] or self.request.keep_empty or holds_empty else WITHOUT_REGIONS

    def _image(self, row: Row) -> UprightImage:
        image = upright_image(self.source.load(row), self.source.limits)
        if (image.width_px, image.height_px) != (row["width"], row["height"]):
            size = f"{image.width_px} x {image.height_px} pixels"
            expected_size = f"{row['width']} x {row['height']}"
            reason = f"{row['file_name']!r} is {size}, but the dataset was made from {expected_size}"
            raise RowFault("bad_image", reason)
        self.report.notes[TURNED_IMAGES] += image.is_reencoded
        return image

    def add_next_step(self) -> None:
        """Report the place of the images and the next command; IMAGES is an unknown folder."""
        out = self.request.out
        folder = self.source.root or "IMAGES"
        images = f"not copied, file names are relative to {folder}"
        if self.takes_images:
            folders = [f"{out}/{self.format.image_folder.format(split=split)}" for split in self.splits]
            folder = folders[0]
            images = (
                f"in {', '.join(folders)}" if self.format.image_folder else "in the files of the export"
            )
        elif "images" in self.format.config_type.model_fields:
            images += "; --set images=true copies them"
        self.report.images = images
        split = next(iter(self.splits))
        self.report.next_step = self.format.next_step.format(
            out=out, split=split, images=folder, config=self.config
        )

    def settings(self) -> Json:
        """Return what the export's mark holds, in plain values."""
        return {
            "format": self.format_name,
            "config": self.config.model_dump(mode="json"),
            "min_score": self.selector.selection.min_score,
            **self.request.model_dump(include={"precision", "keep", "max_area", "where"}),
            "min_count": self.request.min_count,
            "per": self.per,
            "splits": self.splits,
            "keep_empty": self.request.keep_empty,
            "counts": self.report.counts(),
        }


def _names(table: Any) -> list[list[Annotation]]:
    """Return id, phrase and head of the regions of each row."""
    annotations = table["annotations"].combine_chunks()
    names = ("id", "phrase", "head")
    regions = pa.StructArray.from_arrays([annotations.values.field(name) for name in names], names)
    rows: list[list[Row]] = pa.ListArray.from_arrays(annotations.offsets, regions).to_pylist()
    return rows


class Splits(dict[str, float]):
    """Shares of the images, in order: name -> share > 0; their sum is 1.

    The hash of an image's name chooses its split, whatever other images there are.
    """

    def of(self, image: str) -> str:
        """Return the split of an image, see `image_of`."""
        # A separate hash: that of the name alone also orders and names samples.
        place = (stable_id(f"split\n{image}") - 1) / (_IDS - 1)
        ends = list(itertools.accumulate(self.values()))
        return list(self)[min(bisect_right(ends, place), len(ends) - 1)]


def image_of(row: Row) -> str:
    """Return the name of a row's image: its file, else the sample id.

    So all rows of an image are in one split. Images with equal names in different tars are too,
    which is harmless.
    """
    return str(row["file_name"] or row["sample_id"])


def parse_splits(text: str) -> Splits:
    """Return the splits of "train=0.9,val=0.1"; "" is one split of all.

    Raise ConfigError for any other text.
    """
    shares = Splits()
    for part in (text.strip() or f"{ONLY_SPLIT}=1").split(","):
        match = _SHARE.fullmatch(part)
        if match is None:
            raise ConfigError(
                "expected NAME=SHARE,..., for example train=0.9,val=0.1, with letters, digits "
                f"and _ in names; got {part!r}",
                key="split",
            )
        # Some file systems cannot tell apart names that differ only by case.
        if match[1].lower() in map(str.lower, shares):
            raise ConfigError(f"{match[1]} is given twice", key="split")
        shares[match[1]] = float(match[2])
    total = sum(shares.values())
    if abs(total - 1) > 1e-6 or not all(shares.values()):
        raise ConfigError(f"expected shares above 0 that sum to 1, got {total:g}", key="split")
    return shares
