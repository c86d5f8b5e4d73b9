"""From a dataset to a folder in another format: choose, split, number the categories, write, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import ConfigError, RowFault
from stages.contract.schema import DATASET_SCHEMA, IMAGE_FIELD
from stages.dataset.export.base import ChosenSample, Config, Exporter, ExportReport, Job
from stages.dataset.export.categories import Categories, count_categories
from stages.dataset.export.splits import Splits, image_of, parse_splits
from stages.dataset.export.target import opened
from stages.dataset.folder import Dataset
from stages.dataset.image_source import ImageSource
from stages.dataset.selection import Selection, Selector
from stages.images.decode import UprightImage, upright_image

WITH_ERROR: Final = "with an error in the dataset"
WITHOUT_REGIONS: Final = "without a chosen region"

_MOST_FAULTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to export.

    keep_empty  also samples without a chosen region; nobody has certified that nothing is in them
    image_root  see `ImageSource`
    overwrite   see `stages.dataset.export.target`
    """

    config: Config
    selection: Selection = field(default_factory=Selection)
    splits: Splits = field(default_factory=lambda: parse_splits(""))
    keep_empty: bool = False
    image_root: str | None = None
    overwrite: bool = False


def export(
    dataset: Dataset,
    out: Path,
    name: str,
    exporter_type: type[Exporter],
    request: Request,
    progress: Callable[[int], None] = lambda rows: None,
) -> ExportReport:
    """Write the chosen part of a dataset to the folder `out`.

    name      of the format, for the report
    progress  called with the number of rows that are done

    Raises ConfigError for a condition that is none, and for a folder that holds something; InputError for a damaged
    shard or an image root that is no folder. Images that cannot be had are counted in the report.
    """
    config = request.config
    if request.keep_empty and not exporter_type.keeps_empty:
        raise ConfigError(f"--keep-empty: {name} cannot hold a sample without regions")
    selector = Selector(request.selection)
    takes_images = exporter_type.takes_images(config)
    source = ImageSource(dataset, request.image_root) if takes_images else None
    if source is not None and source.root is None and not dataset.has_images:
        raise ConfigError(
            f"--image-root: {name} takes images, but the dataset holds none and does not say in which folder they are"
        )
    report = ExportReport(format=name)
    for split in request.splits.names:
        report.samples[split] = report.regions[split] = 0
    with opened(out, overwrite=request.overwrite) as target:
        naming = exporter_type.naming(config)
        counts = count_categories(dataset, selector, naming) if naming else Counter()
        categories = Categories(counts, naming or "phrase")
        report.categories = len(categories)
        job = Job(dataset=dataset, target=target, splits=request.splits.names, categories=categories, report=report)
        exporter = exporter_type(config, job)
        try:
            for sample in _chosen(dataset, selector, source, request, report):
                exporter.add(sample)
                report.samples[sample.split] += 1
                report.regions[sample.split] += len(sample.regions)
                progress(report.rows)
            exporter.close()
        except BaseException:
            exporter.abandon()
            raise
        target.finish(_about(name, request, report))
    return report


def _chosen(
    dataset: Dataset, selector: Selector, source: ImageSource | None, request: Request, report: ExportReport
) -> Iterator[ChosenSample]:
    """The samples of the export; those that are not are counted."""
    columns = [*DATASET_SCHEMA.names, *([IMAGE_FIELD.name] if source and dataset.has_images else [])]
    for table in dataset.tables(columns):
        for row in selector.choose(table).to_pylist():
            report.rows += 1
            if row["error"] is not None:
                report.left_out[WITH_ERROR] += 1
                continue
            if not row["annotations"] and not request.keep_empty:
                report.left_out[WITHOUT_REGIONS] += 1
                continue
            image = None
            if source is not None:
                try:
                    image = _image(source, row, report)
                except RowFault as fault:
                    report.left_out[f"image: {fault.error.reason}"] += 1
                    if len(report.faults) < _MOST_FAULTS:
                        report.faults.append(f"{row['sample_id']}: {fault}")
                    continue
            yield ChosenSample(row=row, split=request.splits.of(image_of(row)), image=image)


def _image(source: ImageSource, row: dict[str, Any], report: ExportReport) -> UprightImage:
    image = upright_image(source.load(row), source.limits)
    if (image.width_px, image.height_px) != (row["width"], row["height"]):
        raise RowFault(
            "bad_image",
            f"{row['file_name']!r} is {image.width_px} x {image.height_px} pixels, but the dataset was made from "
            f"{row['width']} x {row['height']}",
        )
    if image.encoded_again:
        report.notes["images encoded again: readers would not turn them upright, or take no GIF"] += 1
    return image


def _about(name: str, request: Request, report: ExportReport) -> dict[str, Any]:
    selection = request.selection
    return {
        "format": name,
        "config": request.config.model_dump(mode="json"),
        "min_score": selection.min_score,
        "where": selection.where,
        "splits": dict(request.splits.shares),
        "keep_empty": request.keep_empty,
        "counts": report.counts(),
    }
