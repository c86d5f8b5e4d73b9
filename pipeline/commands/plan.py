"""Estimate time, memory and disk for a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from phrasebox.pipeline.commands.checks import check_places
from phrasebox.pipeline.commands.options import (
    AsJson,
    ConfigFile,
    EngineKind,
    InputImages,
    ModelName,
    Settings,
    input_or_config,
    naming_options,
)
from phrasebox.pipeline.commands.tables import make_figure_table
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.run.plan import PART_IMAGES, Costs, Forecast, Machine, make_plan
from phrasebox.pipeline.run.stage_calls import samples_in
from phrasebox.pipeline.terminal import console, counted, duration, errors, print_json, say
from phrasebox.stages.contract.errors import ConfigError

MILLION = 1_000_000


@naming_options()
def plan(
    source: Annotated[
        str | None, typer.Argument(metavar="INPUT|CONFIG.yaml", help="As `phrasebox run` takes it.")
    ] = None,
    images: InputImages = None,
    model: ModelName = None,
    engine: EngineKind = None,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    total: Annotated[
        int | None,
        typer.Option(
            "--total", metavar="N", min=1, help="Images of the run; by default those of INPUT, if known."
        ),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option("--cores", metavar="N", min=1, help="Also estimate for a cluster with N cores."),
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
    as_json: AsJson = False,
) -> None:
    """Estimate time, memory and disk for a run, here and on a cluster that you describe.

    A few images go through every step in this process, within a minute. The rest is arithmetic,
    and the last lines say what it assumes. Nothing is left behind.

    \b
    phrasebox plan captions.jsonl --images photos/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox plan my.yaml --total 12000000 --cores 96 --gpus 8 --gpu-rate 1500
    """
    start_s = time.perf_counter()
    source, config = input_or_config(source, config)
    if gpus and cores is None:
        raise ConfigError("say how many cores the cluster has, too: --cores N", key="--gpus")
    options = {"input.path": source, "input.image_root": images, "model.name": model, "engine.kind": engine}
    run_config = load_config(config, settings, options=options)
    known_images = total or samples_in(check_places(run_config))
    errors.print("loading what the run needs")
    cluster = (
        None if cores is None else Machine(cores=cores, workers=cores, gpus=gpus, gpu_rate=gpu_rate or 0.0)
    )
    progress = errors if as_json else console
    costs, forecasts = make_plan(run_config, known_images or MILLION, cluster, start_s, progress)
    if as_json:
        plain = [{"where": place, **asdict(result)} for place, result in forecasts.items()]
        print_json({"costs": asdict(costs), "forecasts": plain})
        return
    print_plan(costs, forecasts, console)
    if known_images is None:
        say(console, "Only reading shows how many images the input holds: --total says it")


def print_plan(costs: Costs, forecasts: Mapping[str, Forecast], console: Console) -> None:
    """Print the table for people."""
    failed = f", {costs.failed:,} of which failed" if costs.failed else ""
    say(console, f"measured on {counted(costs.images, 'sample')}{failed}: {costs.device}")
    columns = [f"{counted(result.images, 'image')}\n{place}" for place, result in forecasts.items()]
    table = make_figure_table("What a run takes", columns)
    rows: dict[str, Callable[[Forecast], str]] = {
        "time": lambda run: duration(run.seconds),
        "images/s": lambda run: f"{run.rate:,.1f}",
        "limited by": lambda run: run.limit,
        "dataset": lambda run: decimal(round(run.disk_bytes)),
        "memory of model workers": lambda run: decimal(round(run.memory_bytes)),
    }
    if any(result.parts > 1 for result in forecasts.values()):
        rows[f"parts of up to {PART_IMAGES:,} images"] = lambda run: (
            f"{run.parts:,}, {run.side_by_side} at once,\n{run.part_hours:,.1f} h each"
        )
    for name, format_cell in rows.items():
        table.add_row(name, *map(format_cell, forecasts.values()))
    console.print(table)
    say(
        console,
        "assumed: images like the first ones; phrases that repeat; model workers that do not slow each other down; "
        "nothing for Ray's own processes",
    )
