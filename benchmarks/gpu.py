"""`make gpu`: what a graphics card does with a run. Parity with the CPU, images a second, and where the time goes.

    python -m benchmarks.gpu --out out/gpu

Whole runs go from captions and JPEG files to Parquet by Ray, with images of 500 x 375 px and captions that never
repeat. The ViT has random weights, which does not change the cost, and `photo` has its learned boxes. OUT/gpu.json
holds the tables in the form of those in docs/benchmarks, and OUT/gpu.md shows them.

The clock of a run starts when the first batch is done. Beside its speed stand the milliseconds for which a worker of
each stage is busy with an image. Where
1,000 divided by those of the model worker is the speed of the run, the card limits it, and elsewhere the CPUs do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench import processor
from benchmarks.captions import make_captions
from benchmarks.figures.pages import as_json, as_markdown, table
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.scenes import make_scene
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ResourceError
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.contract.stage import Device
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.grad_eclip import GradEclip
from phrasebox.stages.explain.stage import BATCH_SIZES, ExplainStage, ExplainStageConfig
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.device import DTYPES, device_name, is_fast, pick_device
from phrasebox.stages.model.load import from_open_clip

ROOT: Final = Path(__file__).parents[1]

MOST_DIFFERENT: Final = 0.01
"""Heat in fp32 may differ so much from the CPU's, as a share of the hottest cell: products in TF32 have 10 bits."""

SCENES: Final = 64  # different pictures; a run reads each many times, from files of its own
PHRASES: Final = 16
CAPTIONS: Final = (1, 5)
KERNELS: Final = 12  # rows of the table of kernels


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    images     of a whole run
    maps       images whose heat maps are compared with those of the CPU
    calls      calls of the model's stage that are timed, after one that warms up
    model      with random weights
    """

    images: int = 8192
    maps: int = 16
    calls: int = 5
    model: str = "ViT-B-16"


SMALLEST: Final = Sizes(images=24, maps=2, calls=1, model="ViT-S-32-alt")
"""Enough to run every line of this program; the figures say nothing."""

Table = dict[str, Any]


def whole_runs(sizes: Sizes, device: torch.device, network: torch.nn.Module, engine: str) -> Table:
    """Images a second of runs, and of each stage alone."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "weights.safetensors"
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
        _write_pictures(folder, sizes.images)
        for model in ({"name": sizes.model, "weights": str(weights)}, {"name": "photo"}):
            for captions in CAPTIONS:
                report = _run(folder, sizes.images, captions, {**model, "device": device.type}, engine)
                start_s, _ = report.first_batch or (0.0, 0)
                speed = report.images_per_second  # None if all images were among the first ones
                costs = {
                    stage: 1000 * work.busy_s / max(1, work.records)
                    for stage, work in report.stages.items()
                }
                names = ("phrases", "prepare", "explain", "regions")
                rows.append([model["name"], float(captions), speed, start_s, *map(costs.get, names)])
    columns = [
        "model",
        ["captions", "{:.0f}"],
        ["images/s", "{:,.0f}"],
        ["start, s", "{:.1f}"],
        *([f"{stage}, ms of a worker an image", "{:.2f}"] for stage in ("phrases", "prepare")),
        ["model worker, ms an image", "{:.3f}"],
        ["regions, ms of a worker an image", "{:.2f}"],
    ]
    n = f"{sizes.images:,} images, {engine} engine"
    return table("gpu-runs", "make gpu", columns, rows, n=n, model="random weights, but for photo")


def parity(sizes: Sizes, device: torch.device, network: torch.nn.Module, tokenizer: Any) -> Table:
    """Heat maps of a device in each precision beside those of the CPU in fp32."""
    rgb = np.stack([make_scene(0, number, side_px=224).image for number in range(sizes.maps)])
    texts = [[f"a dog number {n}" for n in range(PHRASES)]] * sizes.maps

    def heat(place: torch.device, precision: str) -> list[np.ndarray[Any, Any]]:
        clip = _clip(network, tokenizer, place, precision)
        maps = GradEclip(GradEclipConfig(), clip).explain(rgb, texts)
        return [heat_map.values for of_image in maps for heat_map in of_image]

    wanted = heat(torch.device("cpu"), "fp32")
    rows = []
    for precision in _precisions(device):
        made = heat(device, precision)
        far = [float(np.abs(a - b).max() / b.max()) for a, b in zip(made, wanted, strict=True)]
        alike = [
            float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in zip(made, wanted, strict=True)
        ]
        peaks = [a.argmax() == b.argmax() for a, b in zip(made, wanted, strict=True)]
        rows.append(
            [precision, statistics.median(far), max(far), min(alike), sum(map(float, peaks)) / len(peaks)]
        )
    columns = [
        "precision",
        ["median difference, share of the hottest cell", "{:.1e}"],
        ["largest", "{:.1e}"],
        ["least cosine of two maps", "{:.6f}"],
        ["same hottest cell", "{:.3f}"],
    ]
    n = f"{len(wanted)} heat maps, against the CPU in fp32"
    return table("gpu-parity", "make gpu", columns, rows, n=n, model=f"{sizes.model}, random weights")


def kernels(sizes: Sizes, device: torch.device, network: torch.nn.Module, tokenizer: Any) -> Table:
    """Operations of the device in a call of the model's stage, the longest first, beside the time of the call."""
    precision = _precisions(device)[-1]
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    size = min(BATCH_SIZES[kind], sizes.images)
    stage = ExplainStage(
        ExplainStageConfig(model=ModelConfig(batch_size=size), explainer=GradEclipConfig()),
        _clip(network, tokenizer, device, precision),
    )
    stage.setup()
    images = size * stage.batches_per_call()
    texts = iter(make_captions(5 * images * (1 + 2 * sizes.calls), seed=1))
    calls = [_records(images, texts) for _ in range(1 + 2 * sizes.calls)]
    warm, *rest = calls
    stage.process(warm)
    start = time.perf_counter()
    for records in rest[: sizes.calls]:
        stage.process(records)
    wall_ms = 1000 * (time.perf_counter() - start) / sizes.calls
    activities = [ProfilerActivity.CUDA] if kind == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for records in rest[sizes.calls :]:
            stage.process(records)
    events = [
        (event.key, _self_us(event, kind) / 1000 / sizes.calls, event.count / sizes.calls)
        for event in profiler.key_averages()
    ]
    events.sort(key=lambda event: -event[1])
    busy_ms = sum(ms for _, ms, _ in events)
    rows = [
        ["**a call**, by the clock", wall_ms, None, None],
        ["**all operations**", busy_ms, sum(count for *_, count in events), busy_ms / wall_ms],
        *([name[:80], ms, count, ms / wall_ms] for name, ms, count in events[:KERNELS]),
    ]
    columns = [
        "operation",
        ["ms a call", "{:.2f}"],
        ["launches", "{:,.0f}"],
        ["share of the call", "{:.2f}"],
    ]
    memory = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most" if kind == "cuda" else ""
    n = f"a call of {images} images in batches of {size}, {PHRASES} phrases and 5 new captions an image{memory}"
    model = f"{sizes.model} in {precision}, random weights"
    return table("gpu-kernels", "make gpu", columns, rows, n=n, model=model)


def _self_us(event: Any, kind: Device) -> float:
    return float(event.self_device_time_total if kind == "cuda" else event.self_cpu_time_total)


def _precisions(device: torch.device) -> list[str]:
    return [name for name in ("fp32", "bf16") if is_fast(DTYPES[name], device)]


def _clip(network: Any, tokenizer: Any, device: torch.device, precision: str) -> ClipModel:
    return from_open_clip(network.to(device), tokenizer, name="random", precision=DTYPES[precision])


def _records(images: int, texts: Iterator[str]) -> list[Record]:
    phrases = tuple(
        Phrase(text=f"dog {n}", caption_index=0, start=0, end=5, head="dog") for n in range(PHRASES)
    )
    pixels = [Pixels(rgb=make_scene(0, number, side_px=224).image) for number in range(min(images, SCENES))]
    return [
        Record(
            sample=Sample(sample_id=str(number), source="", captions=tuple(islice(texts, 5))),
            width_px=224,
            height_px=224,
            phrases=phrases,
            pixels=pixels[number % len(pixels)],
        )
        for number in range(images)
    ]


def _write_pictures(folder: Path, images: int) -> None:
    """Write image files, and a JSON lines file for each number of captions."""
    pictures = []
    for number in range(min(images, SCENES)):
        path = folder / f"scene-{number}.jpg"
        scene = Image.fromarray(make_scene(0, number, side_px=500).image)
        scene.resize((500, 375)).save(path, quality=90)
        pictures.append(path)
    for captions in CAPTIONS:
        texts = iter(make_captions(images * captions))
        with (folder / f"{captions}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(images):
                picture = folder / f"{number}.jpg"
                if not picture.exists():
                    os.link(pictures[number % len(pictures)], picture)
                row = {"image": str(picture), "captions": list(islice(texts, captions))}
                file.write(json.dumps(row) + "\n")


def _run(folder: Path, images: int, captions: int, model: dict[str, Any], engine: str) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        values = {
            "input": {"kind": "jsonl", "path": str(folder / f"{captions}.jsonl")},
            "model": model,
            "images": {"resize": "torch"},
            "regions": {"calibration": "auto" if model["name"] == "photo" else "none"},
            "engine": {"kind": engine},
            "output": {"path": str(Path(out) / "out"), "rows_per_file": 5000},
        }
        run(RunConfig.model_validate(values), report=report)
    return report


def machine(device: torch.device) -> str:
    """Return what the figures were measured on."""
    versions = f"torch {torch.__version__}"
    if device.type == "cuda":
        versions += f", CUDA {torch.version.cuda}"
    return f"{device_name(device)}; {len(os.sched_getaffinity(0))} cores of {processor()}; {versions}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print the tables. The exit code is 1 where heat in fp32 is not that of the CPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), metavar="DIR")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--engine", choices=["ray", "inline"], default="ray")
    parser.add_argument("--model", metavar="NAME", help="an architecture of open_clip instead of ViT-B-16")
    parser.add_argument(
        "--smallest", action="store_true", help="run every line once; the figures say nothing"
    )
    given = parser.parse_args(arguments)
    try:
        device = pick_device(given.device)
    except ResourceError as error:
        parser.error(f"{error}. --device cpu --smallest shows what is measured")
    sizes = SMALLEST if given.smallest else Sizes()
    if given.model:
        sizes = Sizes(**{**vars(sizes), "model": given.model})
    network, tokenizer = open_clip.create_model(sizes.model).eval(), open_clip.get_tokenizer(sizes.model)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    origin = {"commit": commit.stdout.strip() or None, "settings": machine(device), "step": "gpu"}
    given.out.mkdir(parents=True, exist_ok=True)
    tables: list[Table] = []
    measures: list[Callable[[], Table]] = [
        partial(
            whole_runs, sizes, device, network, given.engine
        ),  # while this process has no part of the card
        partial(parity, sizes, device, network, tokenizer),
        partial(kernels, sizes, device, network, tokenizer),
    ]
    for measure in measures:
        tables.append({**measure(), **origin})
        print(as_markdown(tables[-1]), flush=True)
        (given.out / "gpu.json").write_text(as_json({"tables": tables}), encoding="utf-8")
        (given.out / "gpu.md").write_text("\n".join(map(as_markdown, tables)), encoding="utf-8")
    fp32 = tables[1]["rows"][0]
    if fp32[2] > MOST_DIFFERENT:
        print(f"heat of {device.type} in fp32 differs from the CPU's by {fp32[2]:.2g} of the hottest cell")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
