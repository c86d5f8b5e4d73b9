"""The step of a second round: a run with the model that learned from the regions of the first one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures.cells import PHOTO, WITHOUT, cells
from benchmarks.figures.pages import Pages, table
from benchmarks.figures.speed import called
from benchmarks.photos.measure import Photographs, console
from phrasebox.pipeline.calibrate.truth_fit import write_calibration
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set

TRAINING: Final = (
    "batch_size=16",
    "epochs=1",
    "warmup_steps=5",
    "learning_rate=4e-4",  # the best of configs/proof/photos.yaml for these regions
    "frozen=[visual.trunk.features]",
    "model.precision=bf16",
)
WHERE: Final = {
    "pointing": "pointing",
    "box_recall": "box recall, ANY",
    "box_recall_merged": "MERGED",
}
KNOWS: Final = {
    "phrases": "finds the box of a phrase among those of its photograph",
    "t2i": "text to image, R@1",
    "i2t": "image to text, R@1",
}
ANSWERS: Final = {"phrases": "recall_1", "t2i": "r1", "i2t": "r1"}
LEARN, FIT, JUDGE = "flickr8k/train", "flickr8k/train", "flickr8k/dev"


def rounds(photos: Photographs) -> Pages:
    """Regions of `photo`, and of `photo` after it has learned from them, without a calibration and with one of each."""
    learned, fitted, judged = photos.rounds
    models = {"first": "photo", "second": str(tuned(photos, learned))}
    rows = list[list[Any]]()
    for calibration in ("none", "fitted"):
        labels = [f"rounds-{number}-{calibration}" for number in models]
        for (number, model), label in zip(models.items(), labels, strict=True):
            settings = WITHOUT
            if calibration == "fitted":
                settings = f"regions.calibration={calibrated(photos, model, number, fitted)}"
            limit = f"input.limit={judged}"
            figures = photos.figures(JUDGE, model, label, limit, settings, file=PHOTO)
            answers = [*cells(figures["metrics"], [*WHERE]), *cells(figures["scores"], ["score"])]
            rows.append([f"{number} run", calibration, *answers, *cells(figures, ["calibration_error"])])
        gain = photos.gains(JUDGE, labels[1], labels[0], [*WHERE])
        parts = [gain[at : at + 3] for at in range(0, len(gain), 3)]
        differences = [dict(zip(("value", "low", "high"), part, strict=True)) for part in parts]
        rows.append(["second over first", calibration, *differences, None, None])
    command = "python -m benchmarks.figures --only rounds"
    origin = {
        "n": f"{learned:,} photographs of train to learn from, {fitted:,} to fit to, {judged:,} of dev to judge on",
        "split": "Flickr8k train and dev",
        "model": "photo",
    }
    columns = ["", "calibration", *WHERE.values(), "risk-coverage, lower is better", "calibration error"]
    return {
        "proof": {
            "tables": [
                table("rounds", command, columns, rows, **origin),
                table(
                    "rounds-model",
                    command,
                    ["", *KNOWS.values()],
                    score_models(photos, models, judged),
                    **origin,
                ),
            ],
            "said": [],
        }
    }


def tuned(photos: Photographs, count: int) -> Path:
    """Return the folder of `photo` after one epoch on the regions of the first photographs of train."""
    captions = photos.file(f"{LEARN}.jsonl")
    limits = (f"input.path={captions}", f"input.limit={count}", "output.heat_maps=false")
    dataset = photos.dataset(LEARN, "photo", f"rounds-learn-{count}", *limits, file=PHOTO)
    out = photos.out / "models" / f"rounds-{count}"
    settings = [part for setting in TRAINING for part in ("--set", setting)]
    called(
        "-m",
        "phrasebox",
        "finetune",
        str(dataset),
        "--out",
        str(out),
        "--model",
        "photo",
        *settings,
    )
    return out


def calibrated(photos: Photographs, model: str, number: str, count: int) -> Path:
    """Return a calibration that is fitted to the last photographs of train for one of the models."""
    path = photos.out / "calibrations" / f"rounds-{number}-{count}.json"
    if not path.is_file():
        label = f"rounds-{number}-fit-{count}"
        dataset = photos.dataset(FIT, model, label, f"input.limit={count}", WITHOUT, file=PHOTO)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_calibration(open_evaluation_set(dataset, photos.truth(FIT), resized=True), path, console)
    return path


def score_models(photos: Photographs, models: dict[str, str], count: int) -> Sequence[list[Any]]:
    """Return rows of what `score-model` says of both models, and of their difference."""
    data = (
        "--data",
        str(photos.captions(JUDGE)),
        "--images",
        str(photos.images(JUDGE)),
        "--limit",
        str(count),
    )
    files = {number: photos.out / "scores" / f"rounds-{number}.json" for number in models}
    compared: dict[str, list[str]] = {"first": [], "second": ["--compare", str(files["first"])]}
    for number, model in models.items():
        options = [*data, "--truth", str(photos.truth(JUDGE)), *compared[number], "--json"]
        files[number].parent.mkdir(parents=True, exist_ok=True)
        files[number].write_text(
            called("-m", "phrasebox", "score-model", model, *options), encoding="utf-8"
        )
    scores = {number: json.loads(path.read_text("utf-8")) for number, path in files.items()}
    return [
        [label, *(cells(part[name], [answer])[0] for name, answer in ANSWERS.items())]
        for label, part in (
            ("`photo`", scores["first"]["figures"]),
            ("tuned", scores["second"]["figures"]),
            ("tuned over `photo`", scores["second"]["comparison"]["differences"]),
        )
    ]
