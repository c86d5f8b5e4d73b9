"""The step of the page on photographs that searches settings."""

from __future__ import annotations

from typing import Final

from benchmarks.figures.cells import BOXES, FINE, PHOTO, WITHOUT, cells, numbers_of
from benchmarks.figures.pages import Pages, table
from benchmarks.figures.speed import called
from benchmarks.photos.measure import Photographs, console
from pipeline.config_text import dump_yaml
from pipeline.evaluate.evaluation_set import open_evaluation_set
from pipeline.paths import write_file
from pipeline.research.tune.session import tune_settings
from pipeline.research.tune.trials import TuningSession

TUNED_ON: Final = 300


def tune(photos: Photographs) -> Pages:
    """Settings that `phrasebox tune` finds on photographs of train, measured on dev, which it did not see."""
    train, dev, file = "flickr8k/train", "flickr8k/dev", photos.out / "tuned.yaml"
    made = photos.dataset(train, "photo", "photos", WITHOUT, file=PHOTO)
    judged = open_evaluation_set(made, photos.truth(train), resized=True)
    tuning = tune_settings(TuningSession(evaluation_set=judged, console=console), most=TUNED_ON).to_json()
    names = ("pointing", "pointing_off_centre", "box_recall", "box_iou")
    rows = [["the defaults without a calibration", *(tuning["base"][name] for name in names), None]]
    for step in tuning["steps"]:
        label = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in step["changes"].items())
        label = f"**{label}**" if step["kept"] else label
        rows.append([label, *(step["figures"][name] for name in names), *cells(step, ["gain"])])
    origin = {
        "n": f"{tuning['images']:,} photographs, {tuning['known']:,} phrases",
        "split": "Flickr8k train, of the last 500",
        "model": "photo",
    }
    columns = ("", "pointing", "off the centre", "box recall", "mean box IoU", "gain in box IoU")
    command = f"phrasebox tune out/train --truth train.entities.tar.gz --resized --limit {TUNED_ON} --out tuned.yaml"
    tables = [table("tuned", command, columns, rows, **origin)]
    write_file("out", file, dump_yaml(tuning["settings"]))
    fit = photos.dataset(train, "photo", "tuned", WITHOUT, file=file)
    calibration = photos.out / "tuned.json"
    if not calibration.is_file():
        truth = ("--truth", str(photos.truth(train)), "--resized")
        called("-m", "pipeline", "calibrate", str(fit), *truth, "--out", str(calibration))
    for label, preset in (("photos", PHOTO), ("photos-fine", FINE)):
        photos.dataset(dev, "photo", label, file=preset)
    figures = photos.figures(dev, "photo", "tuned", f"regions.calibration={calibration}", file=file)[
        "metrics"
    ]
    values = [number for name in BOXES for number in numbers_of(figures[name])]
    values += (
        number for other in ("photos", "photos-fine") for number in photos.gains(dev, "tuned", other, BOXES)
    )
    about = (
        "settings of tune with a calibration of their own, dev, and over photos and photos-fine: "
        f"{', '.join(BOXES)}"
    )
    return {
        "photographs": {"tables": tables, "said": [{"about": about, "command": command, "values": values}]}
    }
