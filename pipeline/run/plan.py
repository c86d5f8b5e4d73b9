"""Estimates of what a run takes: `phrasebox plan`.

A few images of the input go through every step in this process, on one thread where the run has
several model workers. The rest is arithmetic.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.report import Display, Report
from phrasebox.pipeline.run.decisions import Run, find_input, resolve
from phrasebox.pipeline.run.engines import CPU_MODEL_WORKERS, choose_engine, cores_here
from phrasebox.pipeline.run.stage_calls import rows_per_call, run_stages, set_up, take_batch
from phrasebox.pipeline.run.steps import fetch_weights
from phrasebox.pipeline.terminal import progress_bar, say
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.model.config import AUTO
from phrasebox.stages.write import ShardWriter

RAY_START_S: Final = 20.0  # seconds until Ray has started its workers (2 cores of an AMD EPYC)

SAMPLES: Final = 96  # that are measured at most

MEASURED_S: Final = 20  # seconds after which no more images are measured

CPU_ROWS: Final = 4  # images that are measured together on a CPU, where larger batches are no faster

PART_IMAGES: Final = 10_000_000
"""Most images of a part: its driver holds 80 MB of keys, and a resumed run reads a journal of 160
MB."""

DRIVER_RATE: Final = 5900.0
"""Images a second that one driver feeds to GPUs (docs/benchmarks/scale.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of an image and of the start, measured on a sample.

    Attributes:
        images: The images of the sample.
        failed: The images of the sample that became rows with an error.
        host_s: The seconds of a core for an image in all steps but the model's.
        model_s: The seconds for an image in the model's step, which has met its phrases before.
        bytes: The bytes of an image in the shards.
        memory_bytes: The peak of a process with all stages.
        device: The device of the model, for people.
        start_s: The seconds from the command until the model has answered its first images.
    """

    images: int
    failed: int = 0
    host_s: float
    model_s: float
    bytes: float = 0.0
    memory_bytes: int = 0
    device: str = ""
    start_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A place for a run.

    Attributes:
        cores: The cores of all nodes.
        workers: The model workers, if the model computes on CPUs.
        gpus: The GPUs of all nodes; 0 leaves the model to the cores.
        gpu_rate: The images a second of one GPU.
    """

    cores: int
    workers: int
    gpus: int = 0
    gpu_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The forecast of a run.

    Attributes:
        images: The images of the run.
        seconds: The seconds from the command to its end.
        rate: The images a second between start and end.
        limit: The limit of the rate: "cores", "model workers" or "GPUs".
        disk_bytes: The bytes of the dataset.
        memory_bytes: The bytes of all model workers, each with the other stages beside it.
        parts: The parts of the input: of `PART_IMAGES` at most, and no driver feeds more than
            `DRIVER_RATE`.
        side_by_side: The parts that run at once.
    """

    images: int
    seconds: float
    rate: float
    limit: str
    disk_bytes: float
    memory_bytes: float
    parts: int
    side_by_side: int

    @property
    def part_hours(self) -> float:
        """The hours of a part."""
        return self.seconds / 3600 * self.side_by_side / self.parts


def forecast(costs: Costs, images: int, machine: Machine) -> Forecast:
    """Return the time, memory and disk of a run on a machine. Cores are shared between steps.

    >>> costs = Costs(images=10, host_s=0.01, model_s=0.04)
    >>> run = forecast(costs, 1000, Machine(cores=2, workers=2))
    >>> round(run.rate), run.limit, round(run.seconds)
    (40, 'cores', 25)
    """
    if machine.gpus:
        limits = {"GPUs": machine.gpus * machine.gpu_rate, "cores": machine.cores / costs.host_s}
    else:
        image_s = costs.host_s + costs.model_s
        limits = {"cores": machine.cores / image_s, "model workers": machine.workers / costs.model_s}
    limit = min(limits, key=lambda name: limits[name])
    rate = limits[limit]
    drivers = math.ceil(rate / DRIVER_RATE) if images > PART_IMAGES else 1
    return Forecast(
        images=images,
        seconds=costs.start_s + images / rate,
        rate=rate,
        limit=limit,
        disk_bytes=costs.bytes * images,
        memory_bytes=float(costs.memory_bytes * (machine.gpus or machine.workers)),
        parts=math.ceil(images / PART_IMAGES / drivers) * drivers,
        side_by_side=drivers,
    )


def make_plan(
    config: RunConfig, images: int, cluster: Machine | None, start_s: float, console: Console
) -> tuple[Costs, dict[str, Forecast]]:
    """Measure a few images of a configuration's input; return their costs, and a forecast for each place.

    Args:
        config: The run's configuration.
        images: The images of the run.
        cluster: Another place for it; a GPU rate of 0 stands for that of this machine's GPU.
        start_s: `time.perf_counter()` at the start of the command.
        console: Shows the progress.

    Raises:
        ConfigError: This machine has no GPU to measure.
        PhraseboxError: As `resolve` and `measure`.
    """
    # It imports torch.
    from phrasebox.stages.model.device import pick_device  # noqa: PLC0415

    on_gpu = config.model.device != "cpu" and pick_device("auto").type == "cuda"
    if cluster is not None and cluster.gpus and not cluster.gpu_rate and not on_gpu:
        raise ConfigError(
            "this machine has none to measure on, so say how fast one is: --gpu-rate IMAGES/S", key="--gpus"
        )
    engine = choose_engine(config.engine, images if cluster is None else None)
    # A plain process counts as one core, whatever its threads.
    cores = 1 if engine.kind == "inline" else cores_here()
    workers = engine.explain_worker_bounds[1] or (1 if on_gpu else min(cores, CPU_MODEL_WORKERS))
    threads = 1 if workers > 1 else config.model.threads
    sections = {"engine": engine, "model": config.model.model_copy(update={"threads": threads})}
    display = Display(console)
    with display.shown():
        display.show_step("reading the input")
        run = resolve(find_input(config.model_copy(update=sections)), AUTO, display.show_step)
    fetch_weights(run.steps.description, lambda line: say(console, line))
    rows = rows_per_call(run.steps.model_stage) if on_gpu else CPU_ROWS
    costs = measure(run, rows, start_s, console)
    machines = {"here": Machine(cores=cores, workers=workers, gpus=int(on_gpu))}
    if cluster is not None:
        machines["on the cluster"] = cluster
    rate = 1 / costs.model_s
    return costs, {
        place: forecast(costs, images, replace(machine, gpu_rate=machine.gpu_rate or rate))
        for place, machine in machines.items()
    }


def measure(run: Run, rows: int, start_s: float, console: Console) -> Costs:
    """Take the first samples through every step. Nothing stays on the disk.

    Args:
        run: The run to plan.
        rows: The samples that are measured together.
        start_s: `time.perf_counter()` at the start of the command, for the time that a run
            takes to start.
        console: Shows the progress.

    Raises:
        InputError: The input holds no samples.
        PhraseboxError: As the stages raise it.
    """
    steps = run.steps
    model = [steps.model_stage]
    first = Report()
    repeated = Report()
    read_start = time.perf_counter()
    records = take_batch(map(Record.start, run.reader.samples(run.pieces)), SAMPLES)
    if not records:
        raise InputError("the input holds no samples")
    read_s = (time.perf_counter() - read_start) / len(records)
    bar = progress_bar(console, "measuring, seconds", MEASURED_S)
    outputs: list[Record] = []
    with (
        tempfile.TemporaryDirectory(prefix="phrasebox-plan-") as folder,
        set_up(steps.stages),
        bar as advance,
    ):
        writer = ShardWriter(Path(folder), run.rows_per_file)
        run_stages(steps.stages, records[:rows])  # the first call takes longer
        measure_start = time.perf_counter()
        seconds = 0.0
        while not outputs or (len(outputs) < len(records) and seconds < MEASURED_S):
            batch = records[len(outputs) : len(outputs) + rows]
            inputs = run_stages(steps.before, batch)
            run_stages(model, inputs, first.stage)  # it embeds phrases that repeat in the long run
            answers = run_stages(model, inputs, repeated.stage)
            batch_outputs = run_stages(steps.last_stages, answers)
            writer.write(records_to_rows(batch_outputs, run.config.output.columns))
            outputs += batch_outputs
            seconds = time.perf_counter() - measure_start
            advance(round(seconds))
        writer.close()
        shard_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    count = len(outputs)
    first_work, work = (report.stages[steps.model_stage.name] for report in (first, repeated))
    return Costs(
        images=count,
        failed=sum(record.error is not None for record in outputs),
        host_s=read_s + (seconds - first_work.busy_s - work.busy_s) / count,
        model_s=work.busy_s / count,
        bytes=shard_bytes / count,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        device=", ".join(work.devices) or "none",
        start_s=measure_start - start_s + (RAY_START_S if run.config.engine.kind == "ray" else 0.0),
    )
