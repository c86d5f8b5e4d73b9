"""Draw scenes, make a dataset of them, and measure it.

Scenes -> run -> evaluate -> pictures, then the same with photographs where a model for them is there.

It needs neither network nor GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from pipeline.commands.options import Scenes, Seed, naming_options
from pipeline.commands.tables import print_evaluation
from pipeline.config import RunConfig
from pipeline.dataset.folder import open_dataset
from pipeline.evaluate.evaluation import Evaluation, evaluation_of
from pipeline.photographs import INPUT, MODEL, TRUTH, why_left_out
from pipeline.pictures import make_sheet, regions_overlay
from pipeline.run import run
from pipeline.scenes import write_scenes
from pipeline.terminal import console, counted

SCALES: Final = (1.55, 1.27, 1.0)
"""The sizes of a photograph in configs/photos-fine.yaml, which is not in the package."""

LIKELY: Final = 0.5  # pictures of scenes show regions with at least this score, if the scores are calibrated
LIKELY_ON_PHOTOGRAPHS: Final = 0.3  # of eight photographs one region has 0.5; at 0.3 two in five are right

PICTURES: Final = 12  # images on the sheet


@naming_options({"output.path": "--out"})
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write to; a dataset in it is replaced.")
    ] = Path("out/demo"),
    scenes: Scenes = 100,
    seed: Seed = 0,
) -> None:
    """Draw scenes, make a dataset of them with the bundled model, and measure it; without network and GPU.

    The eight bundled photographs follow, where the model for photographs is there.
    """
    run_demo(out, scenes, seed, console)
    run_photographs(out / "photographs", console)


def run_demo(out: Path, scenes: int, seed: int, console: Console, engine: str = "ray") -> Evaluation:
    """Draw scenes, run the pipeline on them with the bundled model, evaluate against their truth, draw overlays.

    Return the evaluation, which is also in `out/evaluation.json`.
    """
    folder = out / "scenes"
    console.print(f"drawing {counted(scenes, 'scene')} into {folder}", soft_wrap=True)
    write_scenes(folder, scenes, seed)
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
    config = {"input": source, "model": {"name": "demo"}, "engine": {"kind": engine}}
    return _run_and_measure(out, config, folder / "truth.json", "scenes", console, LIKELY)


def run_photographs(out: Path, console: Console, model: str = MODEL) -> Evaluation | None:
    """Do the same with the bundled photographs; return None if the model is missing, and print that."""
    missing = why_left_out(model)
    if missing is not None:
        console.print(missing, soft_wrap=True)
        return None
    config = {"input": INPUT, "model": {"name": model}, "explain": {"scales": SCALES}, "engine": {"kind": "inline"}}
    return _run_and_measure(out, config, TRUTH, "eight photographs", console, LIKELY_ON_PHOTOGRAPHS)


def _run_and_measure(
    out: Path, settings: Mapping[str, Any], truth: Path, subject: str, console: Console, min_score: float
) -> Evaluation:
    """Make `out/dataset`, evaluate it into `out/evaluation.json`, and draw `out/overlays.png`."""
    dataset = out / "dataset"
    config = RunConfig.model_validate({**settings, "output": {"path": str(dataset)}})
    run(config, console, fresh=True)
    console.print(f"evaluating the {subject} against their ground truth", soft_wrap=True)
    evaluation = evaluation_of(dataset, truth, console)
    (out / "evaluation.json").write_text(json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8")
    console.print(f"the {subject}, model {config.model.name}:", soft_wrap=True)
    print_evaluation(evaluation, console)
    calibrated = open_dataset(dataset).manifest["calibration"] is not None
    _write_sheet(out, Path(settings["input"]["image_root"]), min_score if calibrated else 0.0)
    likely = f" with a score of at least {min_score}" if calibrated else ""
    console.print(f"regions{likely} of some images in {out / 'overlays.png'}", soft_wrap=True)
    console.print(f"shards in {dataset / 'data'}/; look at them with: phrasebox inspect {dataset}", soft_wrap=True)
    return evaluation


def _write_sheet(out: Path, images: Path, min_score: float) -> None:
    """Draw regions of a score of at least `min_score` over the first images by sample id."""
    rows = sorted(open_dataset(out / "dataset").rows(), key=lambda row: str(row["sample_id"]))
    pictures = []
    for row in rows[:PICTURES]:
        rgb = np.asarray(Image.open(images / row["file_name"]).convert("RGB"))
        likely = [annotation for annotation in row["annotations"] if annotation["score"] >= min_score]
        pictures.append(regions_overlay(rgb, likely, row["captions"]))
    Image.fromarray(make_sheet(pictures, columns=4)).save(out / "overlays.png")
