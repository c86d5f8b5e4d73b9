"""Every figure about photographs that the documentation gives: `make photos`.

The photographs are not part of the repository. The folder holds, as Flickr8k and COCO give them:

    flickr8k/dev.images.tar, dev.jsonl, dev.entities.tar.gz   photographs, captions, phrase boxes (Flickr30k Entities)
    flickr8k/train.images.tar, train.jsonl, train.entities.tar.gz   the same, the photographs squashed to 224 x 224
    coco/images.tar, captions.json, instances.json   photographs, captions, polygons

Settings and calibration are chosen on train and reported on dev.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from pipeline.commands.calibrate import write_calibration
from pipeline.commands.evaluate import evaluation_of
from pipeline.commands.tune import print_tuning, tuned
from pipeline.config import load_config
from pipeline.run import run
from stages.contract.errors import PhraseboxError, WeightsError

FILES: Final = (
    *(f"flickr8k/{split}.{end}" for split in ("dev", "train") for end in ("images.tar", "jsonl", "entities.tar.gz")),
    *(f"coco/{name}" for name in ("images.tar", "captions.json", "instances.json")),
)

SHOWN: Final = {
    "pointing": "pointing",
    "pointing_off_centre": "off centre",
    "box_recall": "box recall",
    "centre": "centre points",
    "centred_box": "centred box",
}
"""Metric -> column."""

console = Console()


class Photographs:
    """The unpacked photographs, and what was made of them."""

    def __init__(self, source: Path, out: Path, most: int) -> None:
        missing = [name for name in FILES if not (source / name).is_file()]
        if missing:
            sys.exit(f"{source} lacks {', '.join(missing)}; `make photos PHOTOS=DIR` names another folder")
        self.source, self.out, self.most = source, out, most

    def images(self, name: str) -> Path:
        """The folder with the images of flickr8k/dev, flickr8k/train or coco."""
        folder = self.out / "images" / name
        if not folder.is_dir():
            tar = self.source / (f"{name}.images.tar" if "/" in name else f"{name}/images.tar")
            with tarfile.open(tar) as members:
                members.extractall(folder, filter="data")
        return folder

    def captions(self, name: str) -> Path:
        """The captions of these images; of train the last `most`, see `--most`."""
        if name == "coco":
            return self.source / "coco" / "captions.json"
        whole = self.source / f"{name}.jsonl"
        if not name.endswith("train"):
            return whole
        some = self.out / f"train-{self.most}.jsonl"
        some.parent.mkdir(parents=True, exist_ok=True)
        some.write_text("".join(whole.read_text(encoding="utf-8").splitlines(keepends=True)[-self.most :]))
        return some

    def truth(self, name: str) -> Path:
        """Where things are in these images."""
        return self.source / ("coco/instances.json" if name == "coco" else f"{name}.entities.tar.gz")

    def dataset(self, name: str, model: str, label: str, *settings: str, file: Path | None = None) -> Path:
        """The dataset of these images by a model, made if it is not there yet, with the settings of a file."""
        config = load_config(
            file,
            [
                f"input.path={self.captions(name)}",
                f"input.kind={'coco' if name == 'coco' else 'jsonl'}",
                f"input.image_root={self.images(name)}",
                f"model.name={model}",
                "model.pretrained=null",
                f"output.path={self.out / 'datasets' / name / label}",
                "output.heat_maps=true",
                "engine.kind=inline",
                *settings,
            ],
        )
        console.rule(f"{name}: {label}")
        return Path(run(config, console))

    def figures(self, name: str, dataset: Path) -> dict[str, Any]:
        """What `phrasebox eval` says of it."""
        return evaluation_of(dataset, self.truth(name), console, resized=name.endswith("train"))


def table(title: str, figures: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] = SHOWN) -> str:
    """A table in Markdown: a line for each label, the value of each metric and its 95 % interval."""
    lines = [f"**{title}**", "", f"| | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for label, metrics in figures.items():
        cells = []
        for name in columns:
            figure = metrics.get(name)
            known = figure is not None and figure["value"] is not None
            cells.append(f"{figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})" if known else "-")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_type(title: str, figures: Mapping[str, Any]) -> str:
    """The table by type of entity."""
    members = figures["groups"]["type"]
    return table(title, {f"{name} ({members[name]['pointing']['n']:,})": members[name] for name in members})


def measure(photographs: Photographs, settings: Path) -> list[str]:
    """All tables."""
    dev, train, coco = "flickr8k/dev", "flickr8k/train", "coco"
    tables: list[str] = []
    plain = {"demo": photographs.figures(dev, photographs.dataset(dev, "demo", "demo"))}
    try:
        plain["photo"] = photographs.figures(dev, photographs.dataset(dev, "photo", "photo"))
    except WeightsError as error:
        console.print(f"without the photograph model: {error}", soft_wrap=True)
        return [table("dev, default settings", {"demo": plain["demo"]["metrics"]}), by_type("demo", plain["demo"])]
    known = photographs.dataset(train, "photo", "photo")
    tuning = tuned(known, photographs.truth(train), console, most=photographs.most, resized=True)
    print_tuning(tuning, console)
    fitted = photographs.dataset(train, "photo", "photo-settings", "regions.calibration=none", file=settings)
    calibration = photographs.out / "calibration.json"
    print_to = write_calibration(fitted, photographs.truth(train), calibration, console, resized=True)
    console.print(f"{print_to['regions']:,} regions of train, {print_to['right']:,} of them right")
    made = photographs.dataset(dev, "photo", "photo-settings", f"regions.calibration={calibration}", file=settings)
    best = photographs.figures(dev, made)
    rows = {
        "drawn model, defaults": plain["demo"]["metrics"],
        "photograph model, defaults": plain["photo"]["metrics"],
        "photograph model, settings for photographs": best["metrics"],
    }
    tables.append(table("1,000 photographs (Flickr8k dev), human phrase boxes", rows))
    tables.append(by_type("by type of entity, photograph model, settings for photographs", best))
    error = best["calibration_error"]
    half = next(line for line in best["thresholds"] if line["score"] == 0.5)
    tables.append(
        f"expected calibration error {error['value']:.3f} ({error['low']:.3f}-{error['high']:.3f}); "
        f"regions with a score of at least .5: {half['kept']:.1%} of all, precision {half['precision']:.3f}"
    )
    masks = {
        "defaults": photographs.figures(coco, photographs.dataset(coco, "photo", "photo"))["metrics"],
        "settings for photographs": photographs.figures(
            coco, photographs.dataset(coco, "photo", "photo-settings", "regions.calibration=none", file=settings)
        )["metrics"],
    }
    tables.append(table("93 photographs (COCO), masks", masks, {**SHOWN, "mask_iou": "mask IoU"}))
    return tables


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--most", type=int, default=500, help="photographs of train, the last of the list: 500 that `photo` never saw"
    )
    parser.add_argument("--settings", type=Path, default=Path("configs/photos.yaml"))
    given = parser.parse_args()
    try:
        tables = measure(Photographs(given.photos, given.out, given.most), given.settings)
    except PhraseboxError as error:
        sys.exit(f"error: {error}")
    text = "\n\n".join(tables) + "\n"
    (given.out / "tables.md").write_text(text, encoding="utf-8")
    console.print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
