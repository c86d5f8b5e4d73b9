"""`phrasebox plan`: what a run will take."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.commands.options import ConfigFile, InputImages, Json, ModelName, Settings, input_or_config
from pipeline.terminal import console, errors
from stages.contract.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.graph import Graph
    from pipeline.plan.forecast import Forecast
    from pipeline.plan.sample import Costs
    from pipeline.plan.trial import Trial

MILLION: Final = 1_000_000


def plan(
    source: Annotated[
        str | None,
        typer.Argument(metavar="INPUT|CONFIG.yaml", help="As `phrasebox run` takes it."),
    ] = None,
    images: InputImages = None,
    model: ModelName = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="auto|ray|inline", help="As `phrasebox run` takes it.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=2, help="Samples to measure with.")] = 96,
    total: Annotated[
        int | None,
        typer.Option(
            "--total", metavar="N", min=1, help="Images of the run; by default those of INPUT, if it says how many."
        ),
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
            help="Images a second of one of its GPUs. Not needed where the sample is measured on one.",
        ),
    ] = None,
    core_price: Annotated[
        float | None, typer.Option("--core-price", metavar="PRICE", min=0, help="Price of one core for an hour.")
    ] = None,
    gpu_price: Annotated[
        float | None, typer.Option("--gpu-price", metavar="PRICE", min=0, help="Price of one GPU for an hour.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate time, memory and disk for a run, here and on a cluster that you describe.

    A sample goes through every step, in as many processes as the run has model workers, all at once, and the first
    images through a run of their own, which shows what starting and ending take. Nothing is left behind.

    \b
    phrasebox plan captions.jsonl --images photos/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox plan my.yaml --total 12000000 --cores 96 --gpus 8 --gpu-rate 1500 --core-price .04 --gpu-price 2.5
    """
    from pipeline.config import load_config
    from pipeline.engines import chosen
    from pipeline.engines.inline import samples_in
    from pipeline.graph import build_graph, fetch_weights
    from pipeline.plan.forecast import Machine, forecast
    from pipeline.plan.sample import measure
    from pipeline.plan.trial import tried
    from stages.read import plan_shards
    from stages.shared.model.device import pick_device

    source, config = input_or_config(source, config)
    if gpus and cores is None:
        raise ConfigError("--gpus: say how many cores the cluster has, too: --cores N")
    given = {"input.path": source, "input.image_root": images, "model.name": model, "engine.kind": engine}
    resolved = load_config(config, settings, assigned=given)
    on_gpu = resolved.model.device != "cpu" and pick_device("auto").type == "cuda"
    if gpus and gpu_rate is None and not on_gpu:
        raise ConfigError("--gpus: this machine has none to measure on, so say how fast one is: --gpu-rate IMAGES/S")
    said = errors if as_json else console
    graph = build_graph(resolved)
    if graph.loads_model:
        fetch_weights(resolved.model, lambda line: said.print(line, soft_wrap=True))
    images_in_all = total or samples_in(plan_shards(graph.reader))
    resolved = chosen(resolved, None)  # the table always has a column for a million images
    cores_here, workers, late = here(resolved, on_gpu=on_gpu)
    costs = measure(resolved, samples, workers)
    trial = tried(resolved)
    gpu_rate_here = 1 / costs.steps[costs.explain] if on_gpu else None
    prices: dict[str, Any] = {"core_price": core_price, "gpu_price": gpu_price}
    machines = {
        "here": Machine(
            cores=cores_here,
            workers=workers,
            late_workers=late,
            gpus=int(on_gpu),
            gpu_rate=gpu_rate_here,
            **taken(resolved, graph, trial, on_gpu=on_gpu),
            **prices,
        )
    }
    if cores is not None:
        machines["on the cluster"] = Machine(
            cores=cores,
            workers=cores,
            gpus=gpus,
            gpu_rate=gpu_rate or gpu_rate_here,
            **taken(resolved, graph, trial, on_gpu=bool(gpus)),
            **prices,
        )
    forecasts = [
        (where, forecast(costs, count, one))
        for where, one in machines.items()
        for count in dict.fromkeys((images_in_all or MILLION, MILLION))
    ]
    if as_json:
        told = [{"where": where, **asdict(each)} for where, each in forecasts]
        found = {"costs": asdict(costs), "trial": asdict(trial), "forecasts": told}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    print_plan(costs, trial, forecasts, console)


def here(config: RunConfig, *, on_gpu: bool) -> tuple[int, int, int]:
    """Cores, model workers, and how many of these start late, of a run on this machine.

    A plain process counts as one core, whatever its threads.
    """
    from pipeline.engines import cores_here
    from pipeline.engines.ray_cluster import CPU_MODEL_WORKERS

    engine = config.engine
    if engine.kind == "inline":
        return 1, 1, 0
    cores = cores_here()
    workers = engine.most_explain_workers or (1 if on_gpu else min(cores, CPU_MODEL_WORKERS))
    at_once = engine.fewest_explain_workers or (workers if on_gpu else -(-workers // 2))
    return cores, workers, workers - at_once


def taken(config: RunConfig, graph: Graph, trial: Trial, *, on_gpu: bool) -> dict[str, Any]:
    """What a run takes of any machine beside its images, as arguments of `Machine`."""
    from pipeline.engines.inline import call_rows
    from pipeline.plan.forecast import RAY_BATCH_S, RAY_CORES

    found = {"start_s": trial.ready_s, "first": trial.images, "end_s": trial.end_s}
    if config.engine.kind != "ray":
        return found
    rows = call_rows(graph.model, "cuda" if on_gpu else "cpu")
    return {
        **found,
        "last_file": config.output.rows_per_file,
        "own_cores": RAY_CORES,
        "own_s": RAY_BATCH_S / rows,
    }


def print_plan(costs: Costs, trial: Trial, forecasts: Sequence[tuple[str, Forecast]], console: Console) -> None:
    """The tables for people."""
    failed = f", {costs.failed:,} of which failed" if costs.failed else ""
    processes = f"{costs.processes} processes at once, " if costs.processes > 1 else ""
    console.print(
        f"measured on {costs.images:,} samples{failed}, with {costs.phrases:.1f} phrases each: "
        f"{processes}{costs.device}",
        soft_wrap=True,
    )
    table = Table("step", "ms an image", box=SIMPLE_HEAD, title="What an image takes of a core", title_justify="left")
    table.columns[1].justify = "right"
    for step, seconds in costs.steps.items():
        table.add_row(step, f"{1000 * seconds:.1f}")
    table.add_row("a phrase seen for the first time", f"{1000 * costs.text_s:.1f}")
    console.print(table)
    console.print(
        f"a run over the first {trial.images:,} images: {trial.ready_s:.1f} s until the model had answered them, "
        f"{trial.end_s:.1f} s from there to its end",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, title="What a run takes", title_justify="left")
    table.add_column("")
    for where, each in forecasts:
        table.add_column(f"{each.images:,} images\n{where}", justify="right")
    rows: dict[str, Callable[[Forecast], str]] = {
        "time": lambda each: duration(each.seconds),
        "images/s": lambda each: f"{each.rate:,.1f}",
        "limited by": lambda each: each.limit,
        "core hours": lambda each: f"{each.core_hours:,.1f}",
        "GPU hours": lambda each: f"{each.gpu_hours:,.1f}",
        "cores a GPU": lambda each: "-" if each.cores_per_gpu is None else f"{each.cores_per_gpu:,.1f}",
        "dataset": lambda each: size(each.disk_bytes),
        "memory of model workers": lambda each: size(each.memory_bytes),
        "different phrases": lambda each: f"{each.texts:,.0f}",
        "price": lambda each: "-" if each.price is None else f"{each.price:,.2f}",
    }
    for name, told in rows.items():
        cells = [told(each) for _, each in forecasts]
        if any(cell not in ("-", "0.0") for cell in cells):
            table.add_row(name, *cells)
    console.print(table)


def duration(seconds: float) -> str:
    """Seconds for people, in the largest unit of which there is at least one and a half."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes for people."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.0f} kB"
