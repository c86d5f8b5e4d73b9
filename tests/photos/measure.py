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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from pipeline.commands.tune import print_tuning
from pipeline.config import load_config
from pipeline.evaluate.calibrate import write_calibration
from pipeline.evaluate.compare.comparison import Source, compared
from pipeline.evaluate.compare.pictures import Effort
from pipeline.evaluate.evaluation import evaluation_of
from pipeline.evaluate.tune import tuned
from pipeline.run import run
from stages.contract.errors import PhraseboxError, WeightsError
from tests.photos import explainers

FILES: Final = (
    *(f"flickr8k/{split}.{end}" for split in ("dev", "train") for end in ("images.tar", "jsonl", "entities.tar.gz")),
    *(f"coco/{name}" for name in ("images.tar", "captions.json", "instances.json")),
)

SHOWN: Final = ("pointing", "pointing_off_centre", "box_recall", "centre", "centred_box")
"""Metrics of a table."""

WITHOUT: Final = ("regions.calibration=none",)
"""The settings of a run with a model that no calibration fits."""

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

    def settings(self, name: str, model: str) -> list[str]:
        """The settings of a run over these images."""
        return [
            f"input.path={self.captions(name)}",
            f"input.kind={'coco_captions' if name == 'coco' else 'jsonl'}",
            f"input.image_root={self.images(name)}",
            f"model.name={model}",
            "model.pretrained=null",
        ]

    def dataset(self, name: str, model: str, label: str, *settings: str, file: Path | None = None) -> Path:
        """The dataset of these images by a model, made if it is not there yet, with the settings of a file."""
        out = [f"output.path={self.out / 'datasets' / name / label}", "output.heat_maps=true", "engine.kind=inline"]
        config = load_config(file, [*self.settings(name, model), *out, *settings])
        console.rule(f"{name}: {label}")
        return Path(run(config, console))

    def figures(self, name: str, dataset: Path, *, absent: bool = False) -> dict[str, Any]:
        """What `phrasebox eval` says of it, with `--absent` if wanted."""
        return evaluation_of(dataset, self.truth(name), console, resized=name.endswith("train"), absent=absent)

    def compared(self, name: str, images: int, faithful: int) -> str:
        """The tables of `phrasebox compare` for the photograph model on some of these images."""
        config = load_config(None, self.settings(name, "photo"))
        effort = Effort(most=images, phrases=8, faithful=faithful, seed=0)
        source = Source(name=f"photographs ({name})", config=config, truth=self.truth(name))
        return explainers.tables(compared(source, None, effort, console, resized=name.endswith("train")).rows)

    def calibrated(self, settings: Path) -> tuple[str, ...]:
        """Fit a calibration for the settings of a file on train; the settings that name it."""
        label = settings.stem
        fitted = self.dataset("flickr8k/train", "photo", label, *WITHOUT, file=settings)
        calibration = self.out / f"calibration-{label}.json"
        known = write_calibration(fitted, self.truth("flickr8k/train"), calibration, console, resized=True)
        console.print(f"{known['regions']:,} regions of train, {known['right']:,} of them right")
        return (f"regions.calibration={calibration}",)


def table(title: str, figures: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = SHOWN) -> str:
    """A table in Markdown: a line for each label, the value of each metric and its 95 % interval."""
    titles = [name.replace("_", " ") for name in columns]
    lines = [f"**{title}**", "", f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(columns)}"]
    for label, metrics in figures.items():
        known = [metrics.get(name) for name in columns]
        cells = [
            "-"
            if each is None or each["value"] is None
            else f"{each['value']:.3f} ({each['low']:.3f}-{each['high']:.3f})"
            for each in known
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_type(title: str, figures: Mapping[str, Any]) -> str:
    """The table by type of entity."""
    members = figures["groups"]["type"]
    return table(title, {f"{name} ({members[name]['pointing']['n']:,})": members[name] for name in members})


def measure(photographs: Photographs, presets: Sequence[Path], tries: int, explained: int) -> list[str]:
    """All tables."""
    dev, train, coco = "flickr8k/dev", "flickr8k/train", "coco"
    rows = {"drawn model, defaults": photographs.figures(dev, photographs.dataset(dev, "demo", "demo"))["metrics"]}
    tables: list[str] = []
    try:
        plain = photographs.dataset(dev, "photo", "mean", *WITHOUT)
    except WeightsError as error:
        console.print(f"without the photograph model: {error}", soft_wrap=True)
        return [table("dev", rows)]
    rows["photograph model, without a calibration"] = photographs.figures(dev, plain)["metrics"]
    known = photographs.dataset(train, "photo", "mean", *WITHOUT)
    print_tuning(tuned(known, photographs.truth(train), console, most=tries, resized=True), console)
    on_coco = photographs.dataset(coco, "photo", "mean", *WITHOUT)
    masks = {"without a calibration": photographs.figures(coco, on_coco)["metrics"]}
    for preset in presets:
        calibration = photographs.calibrated(preset)
        made = photographs.dataset(dev, "photo", preset.stem, *calibration, file=preset)
        figures = photographs.figures(dev, made, absent=True)
        rows[f"photograph model, {preset.stem}"] = figures["metrics"]
        tables += [by_type(f"{preset.stem}, by type of entity", figures), scores(preset.stem, figures)]
        on_coco = photographs.dataset(coco, "photo", preset.stem, *calibration, file=preset)
        masks[preset.stem] = photographs.figures(coco, on_coco)["metrics"]
    first = table("1,000 photographs (Flickr8k dev), human phrase boxes", rows)
    tables.append(photographs.compared(dev, explained, explained // 5))
    return [first, *tables, table("93 photographs (COCO), masks", masks, [*SHOWN, "mask_iou"])]


def scores(label: str, figures: Mapping[str, Any]) -> str:
    """Lines about calibration, presence and links."""
    half = next(line for line in figures["thresholds"] if line["score"] == 0.5)
    names = ("presence_auc", "similarity_auc", "il_mcc", "positive_f1", "cgf1", "ece", "calibration_error", "group_f1")
    known = {name: figures[name] for name in names if figures.get(name) is not None}
    named = [f"{name} {figure['value']:.3f}" for name, figure in known.items()]
    kept = f"regions with a score of at least 0.5: {half['kept']:.1%} of all, precision {half['precision']:.3f}"
    return f"**{label}**: {', '.join(named)}; {kept}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--most", type=int, default=500, help="photographs of train, the last of the list: 500 that `photo` never saw"
    )
    parser.add_argument("--tries", type=int, default=200, help="how many of these settings are tried on")
    parser.add_argument("--explained", type=int, default=200, help="photographs of dev that explainers are compared on")
    parser.add_argument(
        "--settings", type=Path, nargs="+", default=[Path("configs/photos.yaml"), Path("configs/photos-fine.yaml")]
    )
    given = parser.parse_args()
    try:
        tables = measure(Photographs(given.photos, given.out, given.most), given.settings, given.tries, given.explained)
    except PhraseboxError as error:
        sys.exit(f"error: {error}")
    text = "\n\n".join(tables) + "\n"
    (given.out / "tables.md").write_text(text, encoding="utf-8")
    console.print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
