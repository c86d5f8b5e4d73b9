"""The contract of exporters: the chosen and corrected regions of a dataset, the same bytes for the same dataset."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.reviews import RegionKey, Review, append_review
from phrasebox.pipeline.export.base import Exporter, Per, merge_by_object
from phrasebox.pipeline.export.export import ExportRequest, export_dataset, image_of, parse_splits
from phrasebox.pipeline.export.report import ExportReport
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json
from phrasebox.testing.datasets import make_dataset
from phrasebox.testing.requirement import expect_raised, require
from phrasebox.testing.settings import check_settings

Boxes = Sequence[Sequence[Sequence[float]]]
"""For each image of an export its boxes, as x, y, w, h in pixels."""

SHARES = "train=0.5,val=0.3,test=0.2"


def check_exporter(
    exporter: type[Exporter],
    read_boxes: Callable[[Path, str], Boxes],
    settings: Json | None = None,
    *,
    dataset: Path | None = None,
) -> None:
    """Check all that exporters promise. Raise AssertionError with the promise that does not hold.

    Args:
        exporter: The class.
        read_boxes: Reads the boxes of each image from a folder and a split, without phrasebox.
        settings: Values of its settings other than the defaults.
        dataset: A dataset to export, with regions in at least two images; by default one of twelve synthetic scenes.
    """
    check_settings(exporter.config_type, settings)
    require(exporter.summary and exporter.masks, "summary and masks describe the format")
    require("\n" not in exporter.summary + exporter.masks, "summary and masks are one line each")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_dataset(folder / "made") if dataset is None else dataset
        trial = Trial(
            exporter=exporter, read_boxes=read_boxes, settings=settings, folder=folder / "exports"
        )
        check_choices(trial, source)
        check_splits(trial, source)
        check_objects(trial, source)
        check_corrections(trial, source)
        check_empty_images(trial, source)
        written = {path.name for path in trial.folder.iterdir()}
        require(
            written == trial.names, f"an export stays in its folder, whatever samples are called: {written}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An exporter, and the folder that it exports into.

    Attributes:
        exporter: The class.
        read_boxes: See `check_exporter`.
        settings: Values of its settings other than the defaults.
        folder: The folder of the exports.
        names: Names of the exports so far, with what else may stand beside them.
    """

    exporter: type[Exporter]
    read_boxes: Callable[[Path, str], Boxes]
    settings: Json | None
    folder: Path
    names: set[str] = field(default_factory=set)

    def export(
        self, dataset: Path, name: str, per: Per = "phrase", **choice: Any
    ) -> tuple[Path, ExportReport]:
        """Export a choice of a dataset into a new folder; return it and the report."""
        self.names.add(name)
        config = self.exporter.config_type.model_validate(self.settings or {})
        out = self.folder / name
        request = ExportRequest(exporter=self.exporter, out=out, config=config, per=per, **choice)
        report = export_dataset(open_dataset(dataset), request)
        counted = report.samples.total() + report.left_out.total()
        require(report.rows == counted, "each row is written or left out, and counted once")
        return out, report

    def compare(self, out: Path, rows: Sequence[Json], split: str = "train") -> None:
        """Require that a split of an export holds the boxes of these rows."""
        written = Counter(_rounded(image) for image in self.read_boxes(out, split))
        chosen = Counter(_rounded([region["bbox"] for region in row["annotations"]]) for row in rows)
        require(written == chosen, "an export holds the boxes of the chosen regions, image by image")


def check_choices(trial: Trial, dataset: Path) -> None:
    """Check that all regions, those with the better scores, and none can be exported."""
    rows = _rows_with_regions(dataset)
    out, report = trial.export(dataset, "all")
    require(report.samples == {"train": len(rows)}, "each image with regions is written")
    trial.compare(out, rows)
    scores = sorted(region["score"] for row in rows for region in row["annotations"])
    least = scores[len(scores) // 2]
    out, _ = trial.export(dataset, "better", min_score=least)
    trial.compare(out, _rows_with_regions(dataset, lambda region: region["score"] >= least))
    out, report = trial.export(dataset, "none", where="score < 0")
    require(
        report.samples.total() == 0 and not trial.read_boxes(out, "train"), "no region is a choice, too"
    )


def check_splits(trial: Trial, dataset: Path) -> None:
    """Check that splits share the images, and that the same dataset gives the same bytes."""
    splits = parse_splits(SHARES)
    out, report = trial.export(dataset, "split", split=SHARES)
    for split in splits:
        rows = [row for row in _rows_with_regions(dataset) if splits.of(image_of(row)) == split]
        require(report.samples[split] == len(rows), "each image is in one split")
        trial.compare(out, rows, split)
    again, _ = trial.export(dataset, "again", split=SHARES)
    require(_files(out) == _files(again), "the same dataset gives the same bytes")


def check_objects(trial: Trial, dataset: Path) -> None:
    """Check that objects with several names can be exported once each, unless the format takes phrases alone."""
    if not trial.exporter.takes_groups:
        with expect_raised("a format of phrases refuses objects", ConfigError):
            trial.export(dataset, "objects", per="group")
        trial.names.discard("objects")
        return
    rows = _rows_with_regions(dataset)
    out, _ = trial.export(dataset, "objects", per="group")
    trial.compare(out, [{**row, "annotations": merge_by_object(row["annotations"])} for row in rows])


def check_corrections(trial: Trial, dataset: Path) -> None:
    """Check that a region which people deleted is gone, and that a box which they drew is written."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(dataset, Path(folder) / "dataset"))
        first, *rows = _rows_with_regions(copy)
        deleted = first["annotations"].pop()
        append_review(copy, Review(**RegionKey.of(deleted)._asdict(), reviewer="ann", action="delete"))
        corrected = rows[0]["annotations"][0]
        whole = (0.0, 0.0, float(rows[0]["width"]), float(rows[0]["height"]))
        key = RegionKey.of(corrected)._asdict()
        append_review(copy, Review(**key, reviewer="ann", action="box", box_xywh_px=whole))
        corrected["bbox"] = list(whole)
        out, _ = trial.export(copy, "corrected")
    trial.compare(out, [row for row in (first, *rows) if row["annotations"]])


def check_empty_images(trial: Trial, dataset: Path) -> None:
    """Check that images without regions are written if they are asked for, or refused by a format that cannot."""
    if not trial.exporter.keeps_empty:
        with expect_raised("a format that keeps no empty image refuses them", ConfigError):
            trial.export(dataset, "empty", keep_empty=True)
        trial.names.discard("empty")
        return
    out, _ = trial.export(dataset, "empty", keep_empty=True)
    trial.compare(out, [row for row in open_dataset(dataset).rows() if row["error"] is None])


def _rows_with_regions(
    dataset: Path, is_chosen: Callable[[Json], bool] = lambda region: True
) -> list[Json]:
    """Return the rows of a dataset with their chosen regions; no row that has none."""
    rows = [
        {**row, "annotations": [region for region in row["annotations"] if is_chosen(region)]}
        for row in open_dataset(dataset).rows()
    ]
    return [row for row in rows if row["annotations"]]


def _rounded(boxes: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(sorted(tuple(round(edge, 2) for edge in box) for box in boxes))


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
