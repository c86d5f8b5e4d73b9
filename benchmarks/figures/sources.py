"""The step of the page on sources of regions."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.figures.cells import cells
from benchmarks.figures.pages import Pages, table
from benchmarks.photos.measure import Photographs, console
from phrasebox.pipeline.calibrate.truth_fit import write_calibration
from phrasebox.pipeline.evaluate.estimates import Estimate, mean_estimates
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set, phrases_of
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.stages.contract.errors import ConfigError, InputError

SOURCES: Final = {
    "`heat_maps`, the default": ("", 60, 100),
    "`proposals`, `by: roi`": ("source.kind=proposals source.by=roi", 60, 40),
    "`proposals`, `by: crop`": ("source.kind=proposals source.by=crop", 16, 5),
    "`grid`, `by: roi`": ("source.kind=grid source.by=roi", 60, 100),
    "`grid`, `by: crop`": ("source.kind=grid source.by=crop", 60, 20),
    "`crops`, `by: crop`": ("source.kind=crops source.by=crop", 60, 20),
    "`boxes`: the truth itself": ("source.kind=boxes source.truth={truth}", 60, 100),
}
"""Row -> settings, scenes and photographs. Those that look at crops look many times at each image."""


def place_recall(judged: EvaluationSet) -> Estimate:
    """Return the share of phrases with a right box among all boxes of their image, whatever these are called."""
    hits = [
        (
            row["id"],
            any(is_right(region["bbox"], query.target.boxes_xywh_px) for region in row["annotations"]),
        )
        for row in judged.rows()
        for query in judged.queries(row, phrases_of([*row["annotations"], *row["absent"]]))
        if query.target is not None
    ]
    images, right = map(np.array, zip(*hits, strict=True))
    return mean_estimates([right.astype(np.float64)], images)[0]


def fitted_error(judged: EvaluationSet, out: Path) -> dict[str, Any] | None:
    """Return the calibration error of scores that are fitted to the truth, on images that their fit has not seen.

    It is None where there is nothing to fit: boxes of people have no score, and few images too few regions.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        return asdict(write_calibration(judged, out, console).calibration_error)
    except (ConfigError, InputError) as error:
        console.print(f"not calibrated: {error}")
        return None


def sources(photos: Photographs) -> Pages:
    """Cost and boxes of each source of regions, before a model learns from them."""
    rows = []
    for number, (label, (settings, *counts)) in enumerate(SOURCES.items()):
        row: list[Any] = [label]
        for images, model, count in (
            ("scenes/77/200", "demo", counts[0]),
            ("flickr8k/dev", "photo", counts[1]),
        ):
            made, costs = _made(photos, images, model, f"source-{number}", settings, count)
            regions = json.loads((made / "dataset.json").read_text("utf-8"))["counts"]["regions"]
            judged = open_evaluation_set(made, photos.truth(images))
            metrics = evaluate_dataset(judged, console, []).to_json()["metrics"]
            metrics["places"] = asdict(place_recall(judged))
            row += [count, *costs, regions / count, *cells(metrics, ["box_recall", "places"])]
            again = open_evaluation_set(made, photos.truth(images))
            row.append(fitted_error(again, photos.out / "fitted" / f"{model}-source-{number}.json"))
        rows.append(row)
    titles = (["images", "{:,.0f}"], ["s of a core", "{:.2f}"], ["bytes", "{:,.0f}"], ["regions", "{:.1f}"])
    columns: list[Any] = ["source"]
    for images in ("scenes", "photographs"):
        columns += [*([f"{images}: {title}", how] for title, how in titles), f"{images}: box recall, ANY"]
        columns += [f"{images}: recall of places", f"{images}: calibration error"]
    command = "phrasebox run ... --set source.kind=grid --set source.by=roi; phrasebox eval --no-maps"
    origin = {"split": "synthetic scenes, series 77; Flickr8k dev", "model": "demo; photo"}
    made_table = table("sources", command, columns, rows, n="seconds and bytes of an image", **origin)
    return {"sources": {"tables": [made_table], "said": []}}


def _made(
    photos: Photographs, images: str, model: str, name: str, settings: str, count: int
) -> tuple[Path, list[float]]:
    """Return the dataset of a source, made if it is not there yet, and the seconds and bytes of an image."""
    path = photos.out / "sources" / f"{model}-{name}.json"
    if not path.is_file():
        changes = settings.format(truth=photos.truth(images)).split()
        start = time.process_time()
        made = photos.dataset(
            images, model, name, f"input.limit={count}", "output.heat_maps=false", *changes
        )
        seconds = time.process_time() - start
        bytes_of_all = sum(shard.stat().st_size for shard in (made / "data").glob("*.parquet"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([seconds / count, bytes_of_all / count]), encoding="utf-8")
    costs: list[float] = json.loads(path.read_text("utf-8"))
    return photos.out / "datasets" / images / name, costs
