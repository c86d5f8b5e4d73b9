"""From a dataset to a folder in another format: choose, split, number the categories, write, report."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.dataset.folder import Dataset
from pipeline.dataset.origin import ImageSource
from pipeline.dataset.selection import REGION, Selector
from pipeline.export.base import (
    PHRASE_KEYS,
    Categories,
    CategoryField,
    ChosenSample,
    Exporter,
    ExportJob,
    ExportReport,
    FormatConfig,
    Per,
    merge_by_object,
)
from pipeline.export.corrected import CorrectedDataset
from pipeline.export.files import export_folder
from stages.contract.errors import ConfigError, InputError, RowFault
from stages.contract.records import stable_id
from stages.contract.schema import DATASET_SCHEMA, IMAGE_FIELD, is_said
from stages.shared.images.decode import UprightImage, upright_image

WITH_ERROR: Final = "with an error in the dataset"
WITHOUT_REGIONS: Final = "without a chosen region"
RARE_CATEGORIES: Final = "categories with fewer regions than --min-count: left out"
RARE_REGIONS: Final = "regions of categories with fewer regions than --min-count: left out"
JOINED_MENTIONS: Final = (
    "further mentions of regions, joined: one annotation for each object; --per phrase writes every mention"
)
ONLY_SPLIT: Final = "train"  # Name of the only split: loaders look for it first
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")  # of files on every system, and of a split of Hugging Face datasets
_IDS: Final = 2**53
_MOST_FAULTS: Final = 5
_LIKELY: Final = 0.5  # the score from which a region is more likely right than wrong, if scores are probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """A choice of samples and regions, a format and a new folder.

    Attributes:
        exporter: The format.
        out: The new folder.
        config: Settings of the format; None for its defaults.
        min_score: The least score of an exported region, 0 .. 1.
        where: SQL condition on regions, see `pipeline.dataset.selection`.
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
    min_score: float = 0.0
    where: str = ""
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

    Rows with a missing or broken image are left out. `on_progress` gets the number of rows that are done.

    Raises:
        ConfigError: The condition or the splits are invalid, the folder holds something, or another user's dataset
            names images outside its folder.
        InputError: A shard is damaged, the image root is no folder, or none of the images can be read.
    """
    format_ = request.exporter
    config = format_.config_type() if request.config is None else request.config
    field = format_.category_field(config)
    per = request.per or format_.usual_per(config)
    _check_format(request, field)
    splits = parse_splits(request.split)
    selector = Selector(dataset.selection(request.where, min_score=request.min_score))
    corrections = CorrectedDataset(dataset)
    source = ImageSource(dataset, request.image_root)
    takes_images = format_.takes_images(config)
    if takes_images:
        _check_source(source, dataset, format_.name)
    report = ExportReport(format=format_.name)
    if request.min_score == 0 and dataset.manifest.get("calibration") is not None:
        report.doubtful = 0
    for split in splits:
        report.samples[split] = report.regions[split] = 0
    with export_folder(request.out, overwrite=request.overwrite) as folder:
        categories = _categories(corrections, selector, request, field, per)
        report.categories = len(categories.names)
        report.rare = categories.rare
        report.notes[RARE_CATEGORIES] += categories.dropped_count
        job = ExportJob(dataset=dataset, folder=folder, splits=tuple(splits), categories=categories, report=report)
        exporter = format_(config, job)
        rows = _rows(corrections, selector, report, on_progress, with_images=takes_images)
        for sample in _samples(rows, request, exporter, source, splits):
            exporter.add(sample)
            regions = exporter.written_regions(sample)
            report.samples[sample.split] += 1
            report.regions[sample.split] += len(regions)
            if report.doubtful is not None:
                report.doubtful += sum(region["score"] < _LIKELY for region in regions)
        exporter.close()
        if report.faults and not any(report.samples.values()):
            raise InputError(f"no image can be read; --images says where they are. {report.faults[0]}")
        _add_next_step(report, request, config, source, dataset)
        folder.finish(
            {
                "format": format_.name,
                "config": config.model_dump(mode="json"),
                **{key: getattr(request, key) for key in ("min_score", "where", "min_count")},
                "per": per,
                "splits": splits,
                "keep_empty": request.keep_empty,
                "counts": report.counts(),
            }
        )
    return report


def _check_format(request: ExportRequest, field: CategoryField | None) -> None:
    """Raise ConfigError if the format cannot hold what is requested."""
    name = request.exporter.name
    if request.keep_empty and not request.exporter.keeps_empty:
        raise ConfigError(f"{name} cannot hold a sample without regions", key="keep_empty")
    if request.per == "group" and not request.exporter.takes_groups:
        raise ConfigError(f"{name} has a region for each phrase of a caption, not for each object", key="per")
    if request.min_count and field is None:
        raise ConfigError(f"{name} has no categories with these settings", key="min_count")


def _rows(
    corrections: CorrectedDataset,
    selector: Selector,
    report: ExportReport,
    on_progress: Callable[[int], None],
    *,
    with_images: bool,
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the rows with their chosen regions; and id, phrase and head of their unchosen regions."""
    columns = [*DATASET_SCHEMA.names, *([IMAGE_FIELD.name] if with_images and corrections.dataset.has_images else [])]
    for table, rows in corrections.tables(columns, selector, report.notes):
        for row, regions in zip(rows, _names(table), strict=True):
            report.rows += 1
            chosen_ids = {region["id"] for region in row["annotations"]}
            yield row, [region for region in regions if region["id"] not in chosen_ids]
        on_progress(report.rows)


def _samples(
    rows: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]],
    request: ExportRequest,
    exporter: Exporter,
    source: ImageSource,
    splits: Splits,
) -> Iterator[ChosenSample]:
    """Yield the samples of the export, and report the rows that are left out."""
    report = exporter.job.report
    per_group = (request.per or exporter.usual_per(exporter.config)) == "group"
    for row, unchosen_regions in rows:
        regions = _join_objects(row["annotations"], request.exporter, report.notes, per_group=per_group)
        row["annotations"] = (
            _drop_rare(regions, exporter.job.categories, report.notes) if request.min_count else regions
        )
        if not _is_exported(row, request, exporter.config, report):
            continue
        try:
            image = _image(source, row, report) if exporter.takes_images(exporter.config) else None
        except RowFault as fault:
            report.left_out[f"image: {fault.error.reason}"] += 1
            if len(report.faults) < _MOST_FAULTS:
                report.faults.append(f"{row['sample_id']}: {fault}")
            continue
        yield ChosenSample(
            row=row,
            split=splits.of(image_of(row)),
            image=image,
            per_group=per_group,
            unchosen_regions=unchosen_regions,
        )


def _names(table: Any) -> list[list[dict[str, Any]]]:
    """Return id, phrase and head of the regions of each row."""
    annotations = table["annotations"].combine_chunks()
    names = ("id", "phrase", "head")
    regions = pa.StructArray.from_arrays([annotations.values.field(name) for name in names], names)
    rows: list[list[dict[str, Any]]] = pa.ListArray.from_arrays(annotations.offsets, regions).to_pylist()
    return rows


def _join_objects(
    regions: list[dict[str, Any]], format_: type[Exporter], notes: Counter[str], *, per_group: bool
) -> list[dict[str, Any]]:
    """Return the regions of a row that the format can hold; with `per_group`, join the mentions of each object."""
    if format_.needs_words:
        caption_regions = [region for region in regions if is_said(region)]
        notes["regions that no caption says: left out"] += len(regions) - len(caption_regions)
        regions = caption_regions
    if per_group:
        objects = merge_by_object(regions)
        notes[JOINED_MENTIONS] += len(regions) - len(objects)
        regions = objects
    return regions


def _drop_rare(regions: list[dict[str, Any]], categories: Categories, notes: Counter[str]) -> list[dict[str, Any]]:
    """Return the regions in categories of the export."""
    frequent = [region for region in regions if categories.indices([categories.name_of(region)])]
    notes[RARE_REGIONS] += len(regions) - len(frequent)
    return frequent


def _is_exported(row: dict[str, Any], request: ExportRequest, config: FormatConfig, report: ExportReport) -> bool:
    """Return whether a row is in the export; otherwise report it as left out."""
    if row["error"] is not None:
        report.left_out[WITH_ERROR] += 1
        return False
    if row["annotations"] or request.keep_empty:
        return True
    # A condition asks for regions, and finds none in such a row.
    if not request.where.strip() and request.exporter.holds(config, row):
        return True
    report.left_out[WITHOUT_REGIONS] += 1
    return False


def _check_source(source: ImageSource, dataset: Dataset, name: str) -> None:
    """Raise ConfigError if the place of the images is unknown, or if only another user's dataset names it."""
    if source.root is None and not dataset.has_images:
        raise ConfigError(
            f"{name} takes images, but the dataset holds none and does not say in which folder they are",
            key="image_root",
        )
    source.check()


def _add_next_step(
    report: ExportReport, request: ExportRequest, config: FormatConfig, source: ImageSource, dataset: Dataset
) -> None:
    """Add to the report where the images are and the next command; "IMAGES" stands for an unknown folder."""
    format_ = request.exporter
    folder = "IMAGES"
    if format_.takes_images(config):
        folders = [f"{request.out}/{format_.image_folder.format(split=split)}" for split in report.samples]
        report.images = f"in {', '.join(folders)}" if format_.image_folder else "in the files of the export"
        folder = folders[0]
    else:
        report.images = "not copied, and the dataset does not say where they are"
        if dataset.has_images and request.image_root is None:
            report.images = "not copied, the shards of the dataset hold them"
        elif source.root is not None:
            folder = source.root
            report.images = f"not copied, file names are relative to {folder}"
        report.images += "; --set images=true copies them" if "images" in format_.config_type.model_fields else ""
    split = next(iter(report.samples))
    report.next_step = format_.next_step.format(out=request.out, split=split, images=folder, config=config)


def _image(source: ImageSource, row: dict[str, Any], report: ExportReport) -> UprightImage:
    image = upright_image(source.load(row), source.limits)
    if (image.width_px, image.height_px) != (row["width"], row["height"]):
        raise RowFault(
            "bad_image",
            f"{row['file_name']!r} is {image.width_px} x {image.height_px} pixels, but the dataset was made from "
            f"{row['width']} x {row['height']}",
        )
    report.notes["images encoded again: readers would not turn them upright, or take no GIF"] += image.is_reencoded
    return image


def _categories(
    corrections: CorrectedDataset,
    selector: Selector,
    request: ExportRequest,
    field: CategoryField | None,
    per: Per,
) -> Categories:
    """Count the chosen regions by category and head, from the columns that the choice needs and no others."""
    counts: Counter[tuple[str, str]] = Counter()
    if field is not None:
        per_group = per == "group"
        fields = (*PHRASE_KEYS, "group", "score") if per_group else PHRASE_KEYS
        columns = dict.fromkeys([*(REGION + name for name in fields), *selector.selection.columns])
        for _, rows in corrections.tables(list(columns), selector, Counter()):
            for row in rows:
                regions = _join_objects(row["annotations"], request.exporter, Counter(), per_group=per_group)
                counts.update((region[field], region["head"]) for region in regions)
    return Categories(counts, field or "phrase", request.min_count)


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


def image_of(row: Mapping[str, Any]) -> str:
    """Return the name of a row's image: its file below the image root or in the tar, else the sample id.

    So all rows of an image are in one split. Images with equal names in different tars are too, which is harmless.
    """
    name: str = row["file_name"] or row["sample_id"]
    return name


def parse_splits(text: str) -> Splits:
    """Return the splits of "train=0.9,val=0.1"; "" is one split of all. Raise ConfigError for any other text."""
    shares = Splits()
    for part in text.split(",") if text.strip() else (f"{ONLY_SPLIT}=1",):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"expected NAME=SHARE,..., for example train=0.9,val=0.1; got {part!r}", key="split")
        if name in shares:
            raise ConfigError(f"{name} is given twice", key="split")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise ConfigError(f"the share of {name} is not a number: {share!r}", key="split") from error
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be the name of a split: letters, digits and _ only", key="split")
        if not 0 < shares[name] <= 1:
            raise ConfigError(f"expected a share above 0 and up to 1 for {name}, got {shares[name]:g}", key="split")
    if len({name.lower() for name in shares}) < len(shares):
        raise ConfigError("two names differ only by case, which some file systems cannot tell apart", key="split")
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"expected shares that sum to 1, got {total:g}", key="split")
    return shares
