"""The steps whose figures are those of a machine: seconds, memory, and what follows for many GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from benchmarks.figures.pages import ROOT, Pages, table
from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.run.plan import Costs, Machine, forecast

BENCH_COLUMNS: Final = ("figure", "value", "against")
BENCH: Final = {
    "heatmaps_8_vs_encode_image": "heat maps, time: 8 phrases an image, last block (default), without propagation",
    "heatmaps_32_vs_encode_image": "32 phrases an image, last block",
    "heatmaps_8_blocks4_vs_encode_image": "8 phrases an image, 4 blocks",
    "heatmaps_8_authors_vs_encode_image": "8 phrases an image, `variant: authors` at 224 px",
    "heatmaps_8_bf16_vs_encode_image": "8 phrases an image, last block, `model.precision: bf16`",
    "regions_per_second": "regions, run-length masks included",
    "guided_regions_per_second": "regions, `upsample: guided`",
    "refined_regions_per_second": "regions, `refine: grabcut`",
    "phrases_vs_nlp_pipe": "phrases, time",
    "inline_images_per_second": "inline engine, synthetic scenes",
    "ray_vs_inline": "Ray engine, speed from its first model batch on",
    "ray_start_seconds": "Ray engine, time until its first model batch",
    "loader_annotations": "loader, annotations: boxes, phrases, spans, scores",
    "loader_annotations_with_grid_masks": "loader, with masks of 14 x 14",
    "loader_annotations_with_full_masks": "loader, with full masks",
    "loader_decoding_vs_bare_loop": "loader, decoding images of 640 px",
    **{
        f"run_vs_encode_{captions}_vit_b_{patch}": f"ViT-B-{patch}, {words}"
        for patch in (16, 32)
        for captions, words in ((1, "one caption an image"), (5, "five captions an image"))
    },
}
HOST: Final = {
    "read": "reading captions",
    "prepare": "decoding and resizing",
    "tokens": "tokens of new texts",
    "worker": "of it the model worker's thread",
    "all": "**all**",
}
"""Name of a figure -> title of its row."""


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def speed(photographs: Photographs) -> Pages:
    """Time of a run beside the bare encoder, a trace of a GPU's work, and the host's cost beside it."""
    made: dict[str, list[list[str]]] = {"bench": [], "whole-run": []}
    for line in printed("-m", "benchmarks.bench"):
        title = BENCH.get(line["name"], line["name"].replace("_", " "))
        value = (
            f"{line['value']:.2f}x"
            if line["unit"] == "ratio"
            else f"{_rounded(line['value'])} {line['unit']}"
        )
        made["whole-run" if line["name"].startswith("run_") else "bench"].append(
            [title, value, line["against"]]
        )
    origin = {"model": "random weights, but for the bundled model"}
    bench, whole = (table(name, "make bench", BENCH_COLUMNS, rows, **origin) for name, rows in made.items())
    by_batch: dict[tuple[str, str], list[float]] = {}
    for line in printed("-m", "benchmarks.traced"):
        phrases, _, captions = line["name"].split("_")[1].partition("x")
        by_batch.setdefault((phrases, captions), []).append(line["value"])
    products = (
        ["products in bf16, TFLOP", "{:.2f}"],
        ["in fp32, TFLOP", "{:.3f}"],
        ["written, GB", "{:.1f}"],
    )
    times = (
        ["H100, estimate: device, ms", "{:.1f}"],
        ["launching, ms", "{:.1f}"],
        ["images/s at most", "{:,.0f}"],
    )
    columns = ("phrases an image", ["captions", "{:.0f}"], ["launches", "{:,.0f}"], *products, *times)
    rows = [[phrases, float(captions), *values] for (phrases, captions), values in by_batch.items()]
    origin = {
        "model": "ViT-B-16 in bf16, batches of 64",
        "settings": "configs/photos-gpu.yaml and presence",
    }
    traced = table("traced", "python -m benchmarks.traced", columns, rows, **origin)
    image_folder, captions = (
        str(photographs.images("flickr8k/dev")),
        str(photographs.captions("flickr8k/dev")),
    )
    runs = printed("-m", "benchmarks.host_cost", image_folder, captions, "--images", "32")
    steps = [key for key in runs[0] if key not in ("captions", "known", "images")]
    steps.sort(key=lambda step: step == "worker")
    rows = [[HOST.get(step, step), *(run[step] for run in runs)] for step in steps]
    titles = [
        [
            f"{'one caption' if run['captions'] == 1 else 'five captions'}{', `input.phrases`' * run['known']}",
            "{:.2f}",
        ]
        for run in runs
    ]
    command = "python -m benchmarks.host_cost PHOTOGRAPHS CAPTIONS.jsonl --images 32"
    origin = {
        "n": "32 photographs of 640 px, the fewest of 3 rounds",
        "split": "Flickr8k dev",
        "model": "photo",
    }
    host = table("host", command, ["ms an image", *titles], rows, **origin)
    cost = "benchmarks.segmenter_cost"
    rows = [
        [
            each["model"],
            *(each[key] for key in ("encode_ms", "encode_trunks", "prompt_ms", "prompt_trunks")),
        ]
        for each in printed("-m", cost)
    ]
    titles = [
        ["", ""],
        ["ms an image", "{:,.0f}"],
        ["trunks", "{:.1f}"],
        ["ms a prompt", "{:,.0f}"],
        ["trunks", "{:.2f}"],
    ]
    origin = {"n": "the fewest of 2 rounds", "model": "random weights, in the published sizes"}
    segmenter = table("segmenter", f"python -m {cost}", titles, rows, **origin)
    return {
        "speed": {"tables": [bench, whole, segmenter, host], "said": []},
        "estimates": {"tables": [traced], "said": []},
    }


PROCESSES: Final = ("driver", "raylet", "ledger", "model worker")
SIMULATED: Final = ("-m", "benchmarks.soak.simulated")
MEMORY: Final = {
    "gcs": "Ray's store of the cluster's state",
    "tasks": "tasks that read, cut regions and write",
    "other": "Ray's own actors",
}
BATCHES: Final = (32, 64, 128, 256)
FARM: Final = (64, 256)  # GPUs of `phrasebox plan`'s arithmetic


def scale(photographs: Photographs) -> Pages:
    """How many model workers one driver feeds, memory and start of long inputs, and what this means for many GPUs."""
    command = f"python {' '.join(SIMULATED)}"
    rows = [
        [
            str(line["workers"]),
            *(line[key] for key in ("batches_per_s", "of_ideal", "images_per_s", "cores")),
            [
                *(line["core_ms_a_batch"].get(kind) for kind in PROCESSES),
                sum(line["core_ms_a_batch"].values()),
            ],
        ]
        for line in printed(*SIMULATED)
    ]
    columns = [
        "model workers",
        *([title, "{:.2f}"] for title in ("batches/s", "of what they could do")),
        ["images/s", "{:.0f}"],
        ["cores busy with it", "{:.2f}"],
        ["ms of a core for a batch: driver / raylet / ledger / model worker / all", "{:.0f}"],
    ]
    origin = {"model": "none, workers that sleep"}
    workers = table("workers", command, columns, rows, **origin, settings="1 s a batch of 32 images")
    few = ("--workers", "8", "--seconds", "0.25")
    core_ms = {
        batch: printed(*SIMULATED, *few, "--batch", str(batch))[0]["core_ms_a_batch"] for batch in BATCHES
    }
    rows = [
        ["the graph in all", *(sum(each.values()) / batch for batch, each in core_ms.items())],
        ["the driver", *(each["driver"] / batch for batch, each in core_ms.items())],
    ]
    columns = [
        "ms of a core for an image, by images of a batch",
        *([str(batch), "{:.2f}"] for batch in BATCHES),
    ]
    batches = table("batches", f"{command} {' '.join(few)} --batch 64", columns, rows, **origin)
    measured = printed("-m", "benchmarks.soak.scale", "--out", str(photographs.out / "scale"))
    longest = [line for line in measured if line["name"] == "memory"][-1]
    rows = [
        [
            MEMORY.get(kind, kind),
            each["own_mb"],
            each["rss_mb"],
            each["slope"] and each["slope"]["mb_per_10k_rows"],
        ]
        for kind, each in longest.items()
        if isinstance(each, dict)
    ]
    origin = {"model": "a tiny CLIP with random weights"}
    columns = ["process", ["largest, MB of its own", "{:.0f}"], ["MB with what it shares", "{:.0f}"]]
    columns.append(["growth, MB per 10,000 rows", "{:.2f}"])
    n = f"{longest['images']:,} images in batches of 32"
    memory = table("memory", "python -m benchmarks.soak.scale", columns, rows, **origin, n=n)
    keys = ("first_shard_s", "first_shard_cpu_s", "resume_s", "resume_cpu_s")
    inputs = {"tars": "10,000 tars of one image", "rows": "a JSON lines file of a million rows"}
    rows = [
        [inputs[line["name"]], *(line[key] for key in keys), line["rss_mb"].get("driver")]
        for line in measured
        if line["name"] in inputs
    ]
    titles = ("s to the first shard", "s of a core", "s of a run that resumes, to its end", "s of a core ")
    columns = [
        "input",
        *([title, "{:.0f}"] for title in (*titles, "MB of the driver, with what it shares")),
    ]
    start = table("start", "python -m benchmarks.soak.scale", columns, rows, **origin)
    start["settings"] = "the last 1,000 rows are left for the second run"
    return {
        "scale": {"tables": [workers, batches, memory, start, ends()], "said": []},
        "estimates": {"tables": [many_gpus()], "said": []},
    }


def ends() -> dict[str, Any]:
    """The end of a long run, which counts what all shards hold, and the start of one that was killed."""
    (counted,) = printed("-m", "benchmarks.soak.counting")
    (resumed,) = printed("-m", "benchmarks.soak.resuming")
    phrases = f"{counted['phrases'] / 1e6:.0f} million phrases, no two of them equal"
    shards = f"{resumed['shards']:,} shards of {resumed['rows'] / 1e6:.0f} million rows"
    killed = f"a killed run goes on: {shards} in S3, {resumed['not_noted']} of them not in its journal"
    rows: list[list[Any]] = [
        [f"a run ends: {phrases}", sum(counted["seconds"].values()), counted["peak_mb"] / 1024, None],
        [killed, resumed["take_over"]["seconds"], None, resumed["take_over"]["requests"]],
        ["the same again at once", resumed["again"]["seconds"], None, resumed["again"]["requests"]],
    ]
    columns = ["", ["seconds", "{:.0f}"], ["GB of memory at most", "{:.1f}"], ["requests", "{:,.0f}"]]
    command = "python -m benchmarks.soak.counting; python -m benchmarks.soak.resuming"
    return table("ends", command, columns, rows)


def many_gpus() -> dict[str, Any]:
    """The arithmetic of `phrasebox plan` for 10^9 images on GPUs that have the cores they need."""
    costs = Costs(images=1, host_s=1e-9, model_s=1e-9)
    forecasts = [
        forecast(costs, 10**9, Machine(cores=1, workers=1, gpus=gpus, gpu_rate=1000.0)) for gpus in FARM
    ]
    rows: list[list[Any]] = [
        ["images/s of the cluster, if no driver ends it", *(each.rate for each in forecasts)],
        [
            "drivers, each with a part and a cluster of its own, at once",
            *(each.side_by_side for each in forecasts),
        ],
        ["parts", *(each.parts for each in forecasts)],
        [
            "hours of a part / of all",
            *(f"{each.part_hours:.2f} / {each.seconds / 3600:.1f}" for each in forecasts),
        ],
    ]
    command = "phrasebox plan my.yaml --total 1000000000 --cores 4096 --gpus 64 --gpu-rate 1000"
    columns = ["", *([f"{gpus} GPUs", "{:,.0f}"] for gpus in FARM)]
    return table("gpus", command, columns, rows, settings="arithmetic, no measurement")


def printed(*arguments: str) -> list[dict[str, Any]]:
    """Return the JSON lines that a program of this repository prints. Ends if it fails."""
    return [json.loads(line) for line in called(*arguments).splitlines()]


def called(*arguments: str) -> str:
    """Return what a program of this repository prints to standard output. Ends if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout
