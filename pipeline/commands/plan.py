"""Estimate time, memory and disk for a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from pipeline.commands.checks import check_places
from pipeline.commands.options import (
    ConfigFile,
    EngineKind,
    InputImages,
    Json,
    ModelName,
    Settings,
    input_or_config,
    naming_options,
)
from pipeline.config import load_config
from pipeline.engines import choose_engine
from pipeline.engines.inline import rows_per_call, samples_in
from pipeline.graph import build_graph, fetch_weights
from pipeline.plan import (
    MEASURED_S,
    PART_IMAGES,
    RAY_BATCH_S,
    RAY_CORES,
    Costs,
    Forecast,
    Machine,
    assumptions,
    forecast,
    machine_here,
    measure,
)
from pipeline.terminal import console, counted, duration, errors, print_json
from stages.contract.errors import ConfigError

MILLION = 1_000_000


def plan(
    source: Annotated[
        str | None, typer.Argument(metavar="INPUT|CONFIG.yaml", help="As `phrasebox run` takes it.")
    ] = None,
    images: InputImages = None,
    model: ModelName = None,
    engine: EngineKind = None,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            metavar="N",
            min=2,
            help=f"Samples to measure with, at most: no further ones begin after {MEASURED_S} s.",
        ),
    ] = 96,
    total: Annotated[
        int | None,
        typer.Option("--total", metavar="N", min=1, help="Images of the run; by default those of INPUT, if known."),
    ] = None,
    cores: Annotated[
        int | None, typer.Option("--cores", metavar="N", min=1, help="Also estimate for a cluster with N cores.")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=0, help="GPUs of that cluster.")] = 0,
    gpu_rate: Annotated[
        float | None,
        typer.Option(
            "--gpu-rate",
            metavar="IMAGES/S",
            min=0.001,
            help="Images a second of one of its GPUs; by default that of this machine's GPU.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate time, memory and disk for a run, here and on a cluster that you describe.

    A few images go through every step in this process, within a minute. The rest is arithmetic, and the last line says
    what it assumes. Nothing is left behind.

    \b
    phrasebox plan captions.jsonl --images photos/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox plan my.yaml --total 12000000 --cores 96 --gpus 8 --gpu-rate 1500
    """
    start_s = time.perf_counter()
    source, config = input_or_config(source, config)
    if gpus and cores is None:
        raise ConfigError("--gpus: say how many cores the cluster has, too: --cores N")
    options = {"input.path": source, "input.image_root": images, "model.name": model, "engine.kind": engine}
    with naming_options():
        run_config = load_config(config, settings, options=options)
        shards = check_places(run_config)
    errors.print("loading what the run needs")
    # It imports torch.
    from stages.shared.model.device import pick_device  # noqa: PLC0415

    on_gpu = run_config.model.device != "cpu" and pick_device("auto").type == "cuda"
    if gpus and gpu_rate is None and not on_gpu:
        raise ConfigError("--gpus: this machine has none to measure on, so say how fast one is: --gpu-rate IMAGES/S")
    progress = errors if as_json else console
    known_images = total or samples_in(shards)
    images_of_run = known_images or MILLION
    run_config = choose_engine(run_config, images_of_run if cores is None else None)
    machines = {"here": machine_here(run_config, on_gpu=on_gpu)}
    workers = machines["here"].workers
    if workers > 1:
        run_config = run_config.model_copy(update={"model": run_config.model.model_copy(update={"threads": 1})})
    if cores is not None:
        machines["on the cluster"] = Machine(cores=cores, workers=cores, gpus=gpus)
    graph = build_graph(run_config)
    fetch_weights(graph.described, lambda line: progress.print(line, soft_wrap=True))
    costs = measure(graph, run_config, samples, on_gpu=on_gpu, start_s=start_s, console=progress)
    conditions = assumptions(run_config, costs, workers)
    if known_images is None:
        conditions.append(f"{MILLION:,} images, because only reading shows how many the input holds (--total says it)")
    rate_here = 1 / costs.steps[costs.explain] if on_gpu else None
    forecasts = []
    for place, machine in machines.items():
        rate = rate_here if place == "here" else gpu_rate or rate_here
        loaded = replace(machine, gpu_rate=rate)
        if run_config.engine.kind == "ray":
            rows = rows_per_call(graph.model, "cuda" if machine.gpus else "cpu")
            loaded = replace(loaded, engine_cores=RAY_CORES, engine_s=RAY_BATCH_S / rows)
        forecasts.append((place, forecast(costs, images_of_run, loaded)))
    if as_json:
        plain = [{"where": place, **asdict(result)} for place, result in forecasts]
        print_json({"costs": asdict(costs), "forecasts": plain, "assumed": conditions})
        return
    print_plan(costs, forecasts, conditions, console)


def print_plan(
    costs: Costs, forecasts: Sequence[tuple[str, Forecast]], conditions: Sequence[str], console: Console
) -> None:
    """Print the tables for people."""
    failed = f", {costs.failed:,} of which failed" if costs.failed else ""
    console.print(
        f"measured on {counted(costs.images, 'sample')}{failed}, with {costs.phrases:.1f} phrases each: {costs.device}",
        soft_wrap=True,
    )
    table = Table("step", "ms an image", box=SIMPLE_HEAD, title="What an image takes of a core", title_justify="left")
    table.columns[1].justify = "right"
    for step, seconds in {**costs.steps, "a phrase seen for the first time": costs.text_s}.items():
        table.add_row(step, f"{1000 * seconds:.1f}")
    console.print(table)
    table = Table(box=SIMPLE_HEAD, title="What a run takes", title_justify="left")
    table.add_column("")
    for place, result in forecasts:
        table.add_column(f"{counted(result.images, 'image')}\n{place}", justify="right")
    rows: dict[str, Callable[[Forecast], str]] = {
        "time": lambda run: duration(run.seconds),
        "  until the first images": lambda _: duration(costs.start_s),
        "images/s": lambda run: f"{run.rate:,.1f}",
        "limited by": lambda run: run.limit,
        "core hours": lambda run: f"{run.core_hours:,.1f}",
        "GPU hours": lambda run: f"{run.gpu_hours:,.1f}",
        "cores a GPU": lambda run: "-" if run.cores_per_gpu is None else f"{run.cores_per_gpu:,.1f}",
        "dataset": lambda run: decimal(round(run.disk_bytes)),
        "memory of model workers": lambda run: decimal(round(run.memory_bytes)),
        "different phrases": lambda run: f"{run.texts:,.0f}",
        f"parts of up to {PART_IMAGES:,} images": lambda run: (
            f"{run.parts:,}, {run.side_by_side} at once,\n{run.part_hours:,.1f} h each" if run.parts > 1 else "-"
        ),
    }
    for name, format_cell in rows.items():
        cells = [format_cell(result) for _, result in forecasts]
        if any(cell not in ("-", "0.0") for cell in cells):
            table.add_row(name, *cells)
    console.print(table)
    console.print(f"assumed: {'; '.join(conditions)}", soft_wrap=True)
