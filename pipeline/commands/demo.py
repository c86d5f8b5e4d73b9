"""Draw scenes, make a dataset of them, and measure it.

Scenes -> run -> evaluate -> picture, then the same with photographs where a model for them is
there.

It needs neither network nor GPU.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from phrasebox.pipeline.commands.inspect import inspect
from phrasebox.pipeline.commands.options import Scenes, Seed, naming_options
from phrasebox.pipeline.commands.tables import print_baselines
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.demo.photographs import INPUT, MODEL, TRUTH, USUAL_PLACES, why_left_out
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.evaluate.evaluation import DEFAULT_PARTS, Evaluation, Part, evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set, phrases_of
from phrasebox.pipeline.evaluate.matching import Query
from phrasebox.pipeline.evaluate.metrics import value_of
from phrasebox.pipeline.evaluate.text_only import TextOnly
from phrasebox.pipeline.pictures import make_sheet, regions_overlay
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.terminal import console, counted, say
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.json_files import read_json_as

SCALES: Final = (1.55, 1.27, 1.0)
"""The sizes of a photograph in configs/photos-fine.yaml, which is not in the package."""

PICTURES: Final = 20  # images on the sheet

REGIONS: Final = 3  # of an image on the sheet

RIGHT: Final = ("box_recall", "box_recall_merged")  # metrics of a right box

LEGEND: Final = (
    "pointing: how often the hottest pixel of a phrase lies on its object; off centre: where the centre is not",
    "recall ANY: how often a box overlaps one of the phrase's objects by half (IoU); MERGED: all of them together",
    "above text alone: how much better than the place that the noun usually has, without a look at the image",
    "±: the margin of the 95% interval",
)
"""What the columns and rows of the tables mean."""

WHY_LOW: Final = (
    "These photographs are few and harder than the 1,000 in README.md: half of the phrases name several objects, "
    "and many objects are small."
)

AREA: Final = 0.6  # the largest share of an image that their boxes cover; larger ones are streets and skies


@naming_options({"output.path": "--out"})
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write to; a dataset in it is replaced.")
    ] = Path("out/demo"),
    scenes: Scenes = 100,
    seed: Seed = 0,
    open_viewer: Annotated[
        bool, typer.Option("--open", help="Also open the viewer in the browser.")
    ] = False,
) -> None:
    """Draw scenes, make a dataset of them with the bundled model, and measure it; without network and GPU.

    The bundled photographs follow, if the model `photo` is there, measured against what people
    outlined.

    \b
    phrasebox demo
    phrasebox inspect out/demo/photographs/dataset
    """
    run_demo(out, scenes, seed, console)
    photographs = out / "photographs"
    has_photographs = run_photographs(photographs, console) is not None
    best = photographs if has_photographs else out
    for line in (
        *LEGEND,
        *([WHY_LOW] if has_photographs else []),
        f"1. {best / 'overlays.png'}: of each image the {REGIONS} regions with the highest scores, right or wrong; "
        f"regions that cover {AREA:.0%} of their image or more are left out",
        "2. the last table: how often maps and boxes agree with people, beside answers without a look at the image",
        f"3. all regions, captions and heat maps: phrasebox inspect {best / 'dataset'} --open",
    ):
        say(console, line)
    if open_viewer:
        inspect(best / "dataset", open_browser=True)


def run_demo(out: Path, scenes: int, seed: int, console: Console) -> Evaluation:
    """Draw scenes, run the pipeline on them with the bundled model, evaluate against their truth, draw overlays.

    Return the evaluation, which is also in `out/evaluation.json`.
    """
    folder = out / "scenes"
    say(console, f"drawing {counted(scenes, 'scene')} into {folder}")
    write_scenes(folder, scenes, seed)
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
    return measure(out, {"input": source, "model": {"name": "demo"}}, folder / "truth.json", console)


def run_photographs(out: Path, console: Console, model: str = MODEL) -> Evaluation | None:
    """Do the same with the bundled photographs; return None if the model is missing, and print that."""
    missing = why_left_out(model)
    if missing is not None:
        say(console, missing)
        return None
    return measure_photographs(out, {"model": {"name": model}, "explain": {"scales": SCALES}}, console)


def measure_photographs(
    out: Path, settings: Json, console: Console, parts: Collection[Part] = DEFAULT_PARTS
) -> Evaluation:
    """Run over the bundled photographs with sections of a configuration, and measure the parts, see `evaluate_dataset`.

    Raise PhraseboxError if the model cannot be loaded.
    """
    usual_places = read_json_as(USUAL_PLACES, TextOnly)
    return measure(out, {"input": INPUT, **settings}, TRUTH, console, parts=parts, text_only=usual_places)


def measure(out: Path, settings: Json, truth: Path, console: Console, **options: Any) -> Evaluation:
    """Make `out/dataset`, evaluate it into `out/evaluation.json`, and draw `out/overlays.png`.

    options: Those of `evaluate_dataset`.
    """
    dataset = out / "dataset"
    config = RunConfig.model_validate({**settings, "output": {"path": str(dataset), "heat_maps": True}})
    run(config, console, fresh=True)
    evaluation = evaluate_dataset(open_evaluation_set(dataset, truth), console, **options)
    (out / "evaluation.json").write_text(
        json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8"
    )
    counts = evaluation.figures.counts
    phrases = f"{counted(counts.targets, 'phrase')} of {counted(counts.images, 'image')}"
    say(console, f"{phrases} with a true outline:")
    print_baselines(evaluation.figures.metrics, console)
    say(console, f"all figures: phrasebox eval {dataset} --truth {truth}")
    _write_sheet(out, Path(settings["input"]["image_root"]), truth)
    return evaluation


def _write_sheet(out: Path, images: Path, truth: Path) -> None:
    """Draw regions over the first images, the one with the surest region first, and say which are right."""
    judged = open_evaluation_set(out / "dataset", truth)
    pictures = []
    for row in islice(judged.rows(), PICTURES):
        regions = _choose_regions(row)
        highest = max((region["score"] for region in regions), default=0.0)
        _mark(regions, judged.queries(row, phrases_of(row["annotations"])))
        rgb = np.asarray(Image.open(images / row["file_name"]).convert("RGB"))
        captions = [
            row["captions"][number] for number in sorted({region["caption_index"] for region in regions})
        ]
        pictures.append((highest, regions_overlay(rgb, regions, captions)))
    pictures.sort(key=lambda pair: -pair[0])
    Image.fromarray(make_sheet([picture for _, picture in pictures], columns=4)).save(out / "overlays.png")


def _choose_regions(row: Row) -> list[Json]:
    """Return copies of a row's regions for the sheet: the best of an object, at most `REGIONS`, the best first."""
    most_px = AREA * row["width"] * row["height"]
    regions = [
        dict(region) for region in row["annotations"] if region["bbox"][2] * region["bbox"][3] <= most_px
    ]
    best_by_object = {
        region["group"]: region for region in sorted(regions, key=lambda region: region["score"])
    }
    return sorted(best_by_object.values(), key=lambda region: -region["score"])[:REGIONS]


def _mark(regions: Sequence[Json], queries: Sequence[Query]) -> None:
    """Add to each phrase that the ground truth knows whether its box is that of an object, or of all objects."""
    are_right = {
        query.phrase: query.target is not None and any(value_of(name, query) for name in RIGHT)
        for query in queries
    }
    for region in regions:
        if region["phrase"] in are_right:
            region["phrase"] += " (right)" if are_right[region["phrase"]] else " (wrong)"
