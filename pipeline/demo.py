"""`phrasebox demo`: scenes -> run -> hits against the truth -> pictures. Needs neither network nor GPU."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.config import RunConfig
from pipeline.run import run
from stages.geometry import box_iou
from stages.pictures import regions_overlay, sheet
from stages.scenes import write_scenes

OVERLAYS = 24
"""Pictures written one by one; the first twelve also on one sheet."""


@dataclass(slots=True)
class Hits:
    """Boxes against the truth; each phrase of an image that a caption names counts once.

    phrases  that stand in the truth
    found    got a region
    hit      the best-scored region's box has IoU >= 0.5 with any true box of the phrase
    ious     best-scored region's IoU with its best true box, 0 without a region
    """

    phrases: int = 0
    found: int = 0
    hit: int = 0
    ious: list[float] | None = None


def run_demo(out: Path, scenes: int, seed: int, console: Console, engine: str = "ray") -> Hits:
    """Draw scenes, run the pipeline on them with the embedded model, compare with the truth, draw overlays."""
    console.print(f"drawing {scenes} scenes into {out / 'scenes'}", soft_wrap=True)
    write_scenes(out / "scenes", scenes, seed)
    config = RunConfig.model_validate(
        {
            "input": {
                "kind": "jsonl",
                "path": str(out / "scenes" / "captions.jsonl"),
                "image_root": str(out / "scenes" / "images"),
            },
            "model": {"name": "demo"},
            "engine": {"kind": engine},
            "output": {"path": str(out / "dataset")},
        }
    )
    dataset = run(config, console, fresh=True)
    rows = list(_rows(dataset))
    hits = count_hits(rows, json.loads((out / "scenes" / "truth.json").read_text(encoding="utf-8")))
    _print_hits(console, hits)
    pictures = _write_overlays(rows[:OVERLAYS], out)
    console.print(
        f"pictures in {out / 'overlays'}/, the first {min(12, len(pictures))} on {out / 'overlays.png'}", soft_wrap=True
    )
    console.print(f"shards in {dataset / 'data'}/; check them with: phrasebox validate {dataset}", soft_wrap=True)
    return hits


def _rows(dataset: Path) -> Iterator[dict[str, Any]]:
    """All rows, by sample id."""
    rows = [row for path in sorted((dataset / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    yield from sorted(rows, key=lambda row: str(row["sample_id"]))


def count_hits(rows: list[dict[str, Any]], truth: dict[str, Any]) -> Hits:
    """Compare rows of the dataset with a COCO truth whose annotations carry `phrase` and `mentioned`.

    Images are matched by file name, phrases by their normalised text.
    """
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    boxes: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for annotation in truth["annotations"]:
        if annotation["mentioned"]:
            boxes[names[annotation["image_id"]], annotation["phrase"]].append(annotation["bbox"])
    best: dict[tuple[str, str], Any] = {}
    for row in rows:
        for annotation in sorted(row["annotations"], key=lambda entry: entry["score"]):
            best[row["file_name"], annotation["phrase"]] = annotation["bbox"]
    hits = Hits(ious=[])
    for key, true_boxes in boxes.items():
        hits.phrases += 1
        iou = max((box_iou(best[key], box) for box in true_boxes), default=0.0) if key in best else 0.0
        hits.found += key in best
        hits.hit += iou >= 0.5
        if hits.ious is not None:
            hits.ious.append(iou)
    return hits


def _print_hits(console: Console, hits: Hits) -> None:
    table = Table(title="against the scenes' truth", title_justify="left", show_header=False)
    table.add_row("phrases that name something in a scene", f"{hits.phrases:,}")
    if hits.phrases:
        table.add_row("got a region", f"{hits.found:,} ({hits.found / hits.phrases:.1%})")
        table.add_row("hit (box IoU at least 0.5)", f"{hits.hit:,} ({hits.hit / hits.phrases:.1%})")
        table.add_row("mean box IoU", f"{np.mean(hits.ious or [0.0]):.3f}")
    console.print(table)


def _write_overlays(rows: list[dict[str, Any]], out: Path) -> list[Path]:
    folder = out / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    pictures, paths = [], []
    for row in rows:
        rgb = np.asarray(Image.open(out / "scenes" / "images" / row["file_name"]).convert("RGB"))
        pictures.append(regions_overlay(rgb, row["annotations"], row["captions"]))
        paths.append(folder / f"{Path(row['file_name']).stem}.png")
        Image.fromarray(pictures[-1]).save(paths[-1])
    if pictures:
        Image.fromarray(sheet(pictures[:12], columns=4)).save(out / "overlays.png")
    return paths
