"""The steps whose figures are those of a machine: seconds, memory, and what follows for many GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any, Final

from pipeline.plan import Costs, Machine, forecast
from tests.figures.pages import ROOT, Pages, table
from tests.photos.measure import Photographs


def speed(own: Photographs) -> Pages:
    """Time of a run beside the bare encoder, a trace of a GPU's work, and the host's cost beside it."""
    lines = printed("-m", "tests.bench")
    rows = [[line["name"].replace("_", " "), f"{line['value']:g} {line['unit']}", line["against"]] for line in lines]
    bench = table("bench", "make bench", ("figure", "value", "against"), rows, model="random weights")
    by_phrases: dict[str, list[float]] = {}
    for line in printed("-m", "tests.cuda.traced"):
        by_phrases.setdefault(line["name"].split("_")[1], []).append(line["value"])
    products = (["products in bf16, TFLOP", "{:.2f}"], ["in fp32, TFLOP", "{:.3f}"], ["written, GB", "{:.1f}"])
    times = (["H100, estimate: device, ms", "{:.1f}"], ["launching, ms", "{:.1f}"], ["images/s at most", "{:,.0f}"])
    columns = ("phrases an image", ["launches", "{:,.0f}"], *products, *times)
    rows = [[phrases, *values] for phrases, values in by_phrases.items()]
    known = {"model": "ViT-B-16 in bf16, batches of 64", "settings": "configs/photos-gpu.yaml and presence"}
    traced = table("traced", "python -m tests.cuda.traced", columns, rows, **known)
    photographs, captions = str(own.images("flickr8k/dev")), str(own.captions("flickr8k/dev"))
    runs = printed("-m", "tests.pipeline.engines.host_cost", photographs, captions, "--images", "32")
    steps = [key for key in runs[0] if key not in ("captions", "known", "images")]
    titles = [
        [f"{'one caption' if run['captions'] == 1 else 'five captions'}{', `input.phrases`' * run['known']}", "{:.2f}"]
        for run in runs
    ]
    command = "python -m tests.pipeline.engines.host_cost PHOTOGRAPHS CAPTIONS.jsonl --images 32"
    known = {"n": "32 photographs of 640 px, the fewest of 3 rounds", "split": "Flickr8k dev", "model": "demo"}
    host = table(
        "host", command, ["ms an image", *titles], [[step, *(run[step] for run in runs)] for step in steps], **known
    )
    cost = "tests.stages.shared.model.segmenter_cost"
    rows = [
        [each["model"], *(each[key] for key in ("encode_ms", "encode_trunks", "prompt_ms", "prompt_trunks"))]
        for each in printed("-m", cost)
    ]
    titles = [
        ["", ""],
        ["ms an image", "{:,.0f}"],
        ["trunks", "{:.1f}"],
        ["ms a prompt", "{:,.0f}"],
        ["trunks", "{:.2f}"],
    ]
    known = {"n": "the fewest of 2 rounds", "model": "random weights, in the published sizes"}
    segmenter = table("segmenter", f"python -m {cost}", titles, rows, **known)
    return {"speed": {"tables": [bench, traced, host, segmenter], "said": []}}


PROCESSES: Final = ("driver", "raylet", "ledger", "model worker")
SIMULATED: Final = ("-m", "tests.soak.simulated")
BATCHES: Final = (32, 64, 128, 256)
FARM: Final = (64, 256)  # GPUs of `phrasebox plan`'s arithmetic


def scale(own: Photographs) -> Pages:
    """How many model workers one driver feeds, memory and start of long inputs, and what this means for many GPUs."""
    command = f"python {' '.join(SIMULATED)}"
    rows = [
        [
            str(line["workers"]),
            *(line[key] for key in ("batches_per_s", "of_ideal", "images_per_s", "cores")),
            [*(line["core_ms_a_batch"].get(kind) for kind in PROCESSES), sum(line["core_ms_a_batch"].values())],
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
    known = {"model": "none, workers that sleep"}
    workers = table("workers", command, columns, rows, **known, settings="1 s a batch of 32 images")
    few = ("--workers", "8", "--seconds", "0.25")
    found = {batch: printed(*SIMULATED, *few, "--batch", str(batch))[0]["core_ms_a_batch"] for batch in BATCHES}
    rows = [
        ["the graph in all", *(sum(each.values()) / batch for batch, each in found.items())],
        ["the driver", *(each["driver"] / batch for batch, each in found.items())],
    ]
    columns = ["ms of a core for an image, by images of a batch", *([str(batch), "{:.2f}"] for batch in BATCHES)]
    batches = table("batches", f"{command} {' '.join(few)} --batch 64", columns, rows, **known)
    measured = printed("-m", "tests.soak.scale", "--out", str(own.out / "scale"))
    longest = [line for line in measured if line["name"] == "memory"][-1]
    rows = [
        [kind, each["own_mb"], each["rss_mb"], each["slope"] and each["slope"]["mb_per_10k_rows"]]
        for kind, each in longest.items()
        if isinstance(each, dict)
    ]
    known = {"model": "a tiny CLIP with random weights"}
    columns = ["process", ["largest, MB of its own", "{:.0f}"], ["MB with what it shares", "{:.0f}"]]
    columns.append(["growth, MB per 10,000 rows", "{:.2f}"])
    n = f"{longest['images']:,} images in batches of 32"
    memory = table("memory", "python -m tests.soak.scale", columns, rows, **known, n=n)
    keys = ("first_shard_s", "first_shard_cpu_s", "resume_s", "resume_cpu_s")
    inputs = {"tars": "10,000 tars of one image", "rows": "a JSON lines file of a million rows"}
    rows = [
        [inputs[line["name"]], *(line[key] for key in keys), line["rss_mb"].get("driver")]
        for line in measured
        if line["name"] in inputs
    ]
    titles = ("s to the first shard", "s of a core", "s of a run that resumes, to its end", "s of a core ")
    columns = ["input", *([title, "{:.0f}"] for title in (*titles, "MB of the driver, with what it shares"))]
    start = table("start", "python -m tests.soak.scale", columns, rows, **known)
    start["settings"] = "the last 1,000 rows are left for the second run"
    return {"scale": {"tables": [workers, batches, memory, start, many_gpus()], "said": []}}


def many_gpus() -> dict[str, Any]:
    """The arithmetic of `phrasebox plan` for 10^9 images on GPUs that have the cores they need."""
    known = {"images": 1, "device": "", "steps": {"explain": 0.0, "others": 1e-9}, "explain": "explain"}
    costs = Costs(**{each.name: 0 for each in fields(Costs)} | known)  # type: ignore[arg-type]
    found = [forecast(costs, 10**9, Machine(cores=1, workers=1, gpus=gpus, gpu_rate=1000.0)) for gpus in FARM]
    rows: list[list[Any]] = [
        ["images/s of the cluster, if no driver ends it", *(each.rate for each in found)],
        ["drivers, each with a part and a cluster of its own, at once", *(each.side_by_side for each in found)],
        ["parts", *(each.parts for each in found)],
        ["hours of a part / of all", *(f"{each.part_hours:.2f} / {each.seconds / 3600:.1f}" for each in found)],
    ]
    command = "phrasebox plan my.yaml --total 1000000000 --cores 4096 --gpus 64 --gpu-rate 1000"
    columns = ["", *([f"{gpus} GPUs", "{:,.0f}"] for gpus in FARM)]
    return table("gpus", command, columns, rows, settings="arithmetic, no measurement")


def printed(*arguments: str) -> list[dict[str, Any]]:
    """Return the JSON lines that a program of this repository prints. Ends if it fails."""
    return [json.loads(line) for line in called(*arguments).splitlines()]


def called(*arguments: str) -> str:
    """Return what a program of this repository prints to standard output. Ends if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout
