"""The contract of exporters: the chosen regions of a dataset, in any split, the same bytes for the same dataset."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.export.base import Exporter
from phrasebox.pipeline.export.export import ExportRequest, export_dataset, parse_splits
from phrasebox.pipeline.export.report import ExportReport
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json
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
        dataset: A dataset to export; by default one of twelve synthetic scenes.
    """
    check_settings(exporter.config_type, settings)
    require(exporter.summary and exporter.masks, "summary and masks describe the format")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_dataset(folder / "made") if dataset is None else dataset
        rows = [*open_dataset(source).rows()]
        sound = [row for row in rows if row["annotations"]]
        out, report = _export(exporter, source, folder / "out", settings)
        require(report.samples.total() == len(sound), "each image with regions is written")
        _compare(read_boxes(out, "train"), sound)
        splits = parse_splits(SHARES)
        out, report = _export(exporter, source, folder / "split", settings, split=SHARES)
        for split in splits:
            part = [row for row in sound if splits.of(row["file_name"]) == split]
            _compare(read_boxes(out, split), part)
        again, _ = _export(exporter, source, folder / "again", settings, split=SHARES)
        require(_files(out) == _files(again), "the same dataset gives the same bytes")
        out, report = _export(exporter, source, folder / "none", settings, min_score=1.0)
        require(report.samples.total() == 0 and not read_boxes(out, "train"), "no region is a choice, too")
        if exporter.keeps_empty:
            out, _ = _export(exporter, source, folder / "empty", settings, keep_empty=True)
            _compare(read_boxes(out, "train"), [row for row in rows if row["error"] is None])
        else:
            with expect_raised("a format that keeps no empty image refuses them", ConfigError):
                _export(exporter, source, folder / "empty", settings, keep_empty=True)


def make_dataset(folder: Path, scenes: int = 12) -> Path:
    """Return a dataset of synthetic scenes in a new folder, made with the bundled model `demo`."""
    write_scenes(folder / "scenes", scenes, seed=3)
    with (folder / "scenes" / "captions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"image": "none.jpg", "caption": "a red car"}\n')
    image = next(iter(sorted((folder / "scenes" / "images").iterdir())))
    shutil.copy(image, image.with_name("nothing.jpg"))
    with (folder / "scenes" / "captions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"image": "nothing.jpg", "caption": "so very nice"}\n')
    config = RunConfig.model_validate(
        {
            "input": {
                "kind": "jsonl",
                "path": f"{folder}/scenes/captions.jsonl",
                "image_root": f"{folder}/scenes/images",
            },
            "model": {"name": "demo"},
            "engine": {"kind": "inline"},
            "output": {"path": f"{folder}/dataset", "max_error_share": 1.0},
        }
    )
    run(config, Console(quiet=True))
    return folder / "dataset"


def _export(
    exporter: type[Exporter], dataset: Path, out: Path, settings: Json | None, **choice: Any
) -> tuple[Path, ExportReport]:
    config = exporter.config_type.model_validate(settings or {})
    request = ExportRequest(exporter=exporter, out=out, config=config, per="phrase", **choice)
    return out, export_dataset(open_dataset(dataset), request)


def _compare(boxes: Boxes, rows: Sequence[Json]) -> None:
    written = Counter(
        tuple(sorted(tuple(round(edge, 2) for edge in box) for box in image)) for image in boxes
    )
    chosen = Counter(
        tuple(sorted(tuple(round(edge, 2) for edge in region["bbox"]) for region in row["annotations"]))
        for row in rows
    )
    require(written == chosen, "an export holds the boxes of the chosen regions, image by image")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
