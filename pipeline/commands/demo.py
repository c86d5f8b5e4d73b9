"""`phrasebox demo`: scenes -> run -> evaluate -> pictures. Needs neither network nor GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from pipeline.commands.evaluate import evaluation_of, print_evaluation
from pipeline.config import RunConfig
from pipeline.run import run
from stages.images.pictures import regions_overlay, sheet
from stages.model.scenes import write_scenes

REGIONS = {"upsample": "guided", "rule": "fixed", "threshold": 0.45}
"""What pays on drawn things: configs/README.md. The same as in configs/demo.yaml."""

OVERLAYS = 24
"""Pictures written one by one; the first twelve also on one sheet."""


def run_demo(out: Path, scenes: int, seed: int, console: Console, engine: str = "ray") -> dict[str, Any]:
    """Draw scenes, run the pipeline on them with the embedded model, evaluate against the truth, draw overlays.

    Returns the figures, which also stand in `out/evaluation.json`.
    """
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
            "regions": REGIONS,
            "engine": {"kind": engine},
            "output": {"path": str(out / "dataset")},
        }
    )
    run(config, console, fresh=True)
    dataset = out / "dataset"
    console.print("evaluating against the scenes' truth; heat maps are computed again for it", soft_wrap=True)
    figures = evaluation_of(dataset, out / "scenes" / "truth.json", console)
    (out / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print_evaluation(figures, console)
    pictures = _write_overlays(list(_rows(dataset))[:OVERLAYS], out)
    console.print(
        f"pictures in {out / 'overlays'}/, the first {min(12, len(pictures))} on {out / 'overlays.png'}", soft_wrap=True
    )
    console.print(f"shards in {dataset / 'data'}/; look at them with: phrasebox inspect {dataset}", soft_wrap=True)
    return figures


def _rows(dataset: Path) -> Iterator[dict[str, Any]]:
    """All rows, by sample id."""
    rows = [row for path in sorted((dataset / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    yield from sorted(rows, key=lambda row: str(row["sample_id"]))


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
