"""Estimates of what a run takes: `phrasebox plan`.

A few images of the input go through every step in this process, on one thread where the run has several model workers.
The rest is arithmetic, on assumptions that `assumptions` names.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Final

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.domain import SAMPLES
from pipeline.engines import CPU_MODEL_WORKERS, cores_here
from pipeline.engines.inline import rows_per_call, run_stages, set_up
from pipeline.graph import Graph
from pipeline.presence_alone import MOST_IMAGES, is_wanted, most_to_fit
from pipeline.summary import Report
from pipeline.terminal import progress_bar
from stages.contract.errors import InputError
from stages.contract.records import Record
from stages.contract.schema import records_to_rows
from stages.contract.stage import Stage
from stages.contract.tables import records_to_table, table_to_records
from stages.read import plan_shards
from stages.write import ShardWriter

RAY_CORES: Final = 0.1
"""Cores that Ray's own processes keep busy during a run, however little it does: the loops of the driver, the raylet
and the servers of state, statistics and logs, and the ledger (2 cores of an AMD EPYC, configs/measured/scale.md)."""

RAY_BATCH_S: Final = 0.12
"""Seconds of a core that these and the workers take to hand a batch of records from step to step, beside making tables
of records, which the sample shows (measured there, too)."""

RAY_START_S: Final = 20.0  # seconds until Ray has started its workers (2 cores of an AMD EPYC)

MEASURED_S: Final = 20  # seconds after which no more images are measured

CPU_ROWS: Final = 4  # images that are measured together on a CPU, where larger batches are no faster

PART_IMAGES: Final = 10_000_000
"""Most images of a part: its driver holds 80 MB of keys, and a resumed run reads a journal of 160 MB."""

DRIVER_RATE: Final = 5900.0
"""Images a second that one driver feeds to GPUs (configs/measured/scale.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of an image and of the start, measured on a sample.

    Attributes:
        images: The images of the sample.
        failed: The images of the sample that became rows with an error.
        phrases: The phrases of an image.
        steps: The seconds of an image by step; the model's step without the texts.
        explain: The step that holds the model.
        text_s: The seconds of a phrase that is new to the model.
        half_texts: The different phrases in half of the sample.
        texts: The different phrases in the whole sample.
        bytes: The bytes of an image in the shards.
        memory_bytes: The peak of a process with all stages.
        device: The device of the model, for people.
        first: The most images that a run computes in one process before all others.
        start_s: The seconds from the command until the model has answered its first images.
    """

    images: int
    failed: int
    phrases: float
    steps: Mapping[str, float]
    explain: str
    text_s: float
    half_texts: int
    texts: int
    bytes: float
    memory_bytes: int
    device: str
    first: int = 0
    start_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A place for a run.

    Attributes:
        cores: The cores of all nodes.
        workers: The model workers, if the model computes on CPUs.
        gpus: The GPUs of all nodes; 0 leaves the model to the cores.
        gpu_rate: The images a second of one GPU.
        engine_cores: The cores that the engine's processes keep busy.
        engine_s: The seconds of a core that these take for an image.
    """

    cores: int
    workers: int
    gpus: int = 0
    gpu_rate: float | None = None
    engine_cores: float = 0.0
    engine_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The forecast of a run.

    Attributes:
        images: The images of the run.
        seconds: The seconds from the command to its end.
        rate: The images a second between start and end.
        limit: The limit of the rate: "cores", "model workers" or "GPUs".
        core_hours: The hours of cores that are reserved for the run.
        gpu_hours: The hours of GPUs that are reserved for the run.
        cores_per_gpu: The cores that keep one GPU busy; None without GPUs.
        disk_bytes: The bytes of the dataset.
        memory_bytes: The bytes of all model workers, each with the other stages beside it.
        texts: The different phrases to expect.
        parts: The parts of the input: of `PART_IMAGES` at most, and no driver feeds more than `DRIVER_RATE`.
        side_by_side: The parts that run at once.
        part_hours: The hours of a part.
    """

    images: int
    seconds: float
    rate: float
    limit: str
    core_hours: float
    gpu_hours: float
    cores_per_gpu: float | None
    disk_bytes: float
    memory_bytes: float
    texts: float
    parts: int
    side_by_side: int
    part_hours: float


def texts_in(costs: Costs, images: float) -> float:
    """Return the different phrases to expect in a number of images, by Heaps' law: a power of that number.

    The exponent is estimated from half of the sample and all of it.
    """
    if not costs.texts:
        return 0.0
    power = min(1.0, max(0.0, math.log2(costs.texts / max(1, costs.half_texts))))
    return float(costs.texts * (images / costs.images) ** power)


def forecast(costs: Costs, images: int, machine: Machine) -> Forecast:
    """Return the time, memory and disk of a run on a machine. Raise ValueError if the speed of its GPUs is unknown.

    Every worker embeds the phrases that are new to it. Cores are shared between steps.
    """
    other_s = sum(seconds for step, seconds in costs.steps.items() if step != costs.explain) + machine.engine_s
    cores = machine.cores - machine.engine_cores
    share = images / machine.workers
    explain = costs.steps[costs.explain] + costs.text_s * texts_in(costs, share) / share
    if machine.gpus:
        if machine.gpu_rate is None:
            raise ValueError("expected the images a second of a GPU")
        limits = {"GPUs": machine.gpus * machine.gpu_rate, "cores": cores / other_s}
    else:
        limits = {"cores": cores / (other_s + explain), "model workers": machine.workers / explain}
    limit = min(limits, key=lambda name: limits[name])
    first = min(images, costs.first, most_to_fit(images))
    first_s = first * (sum(costs.steps.values()) + costs.text_s * costs.texts / costs.images)
    seconds = costs.start_s + first_s + (images - first) / limits[limit]
    drivers = math.ceil(limits[limit] / DRIVER_RATE) if images > PART_IMAGES else 1
    parts = math.ceil(images / PART_IMAGES / drivers) * drivers
    return Forecast(
        images=images,
        seconds=seconds,
        rate=limits[limit],
        limit=limit,
        core_hours=machine.cores * seconds / 3600,
        gpu_hours=machine.gpus * seconds / 3600,
        cores_per_gpu=machine.gpu_rate * other_s if machine.gpus and machine.gpu_rate is not None else None,
        disk_bytes=costs.bytes * images,
        memory_bytes=float(costs.memory_bytes * (machine.gpus or machine.workers)),
        texts=texts_in(costs, images),
        parts=parts,
        side_by_side=drivers,
        part_hours=seconds / 3600 * drivers / parts,
    )


def machine_here(config: RunConfig, *, on_gpu: bool) -> Machine:
    """Return this machine as a run uses it. A plain process counts as one core, whatever its threads."""
    engine = config.engine
    if engine.kind == "inline":
        return Machine(cores=1, workers=1, gpus=int(on_gpu))
    workers = engine.most_explain_workers or (1 if on_gpu else min(cores_here(), CPU_MODEL_WORKERS))
    return Machine(cores=cores_here(), workers=workers, gpus=int(on_gpu))


class PassThrough(Stage):
    """Turns records into a table and back, as Ray's workers do to pass them on."""

    name: ClassVar[str] = "tables"

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Return the records of their table."""
        return table_to_records(records_to_table(batch))


def assumptions(config: RunConfig, costs: Costs, workers: int) -> list[str]:
    """Return the assumptions of a forecast for this machine, for people."""
    words = ["images like the first ones"]
    if config.engine.kind == "ray":
        words.append(f"{RAY_START_S:.0f} s until Ray has started")
    if workers > 1:
        words.append(f"{workers} model workers that do not slow each other down, each as fast as this one process")
    if costs.first:
        words.append(f"at most {costs.first} images computed before all others, to check a calibration or to fit one")
    return words


def measure(graph: Graph, config: RunConfig, samples: int, *, on_gpu: bool, start_s: float, console: Console) -> Costs:
    """Take at most so many samples through every step. Nothing stays on the disk.

    start_s: `time.perf_counter()` at the start of the command, for the time that a run takes to start.

    Raise InputError if the input holds no samples, and PhraseboxError if the run would be rejected.
    """
    columns = graph.settings(config).output.columns
    tables = (PassThrough(),) if config.engine.kind == "ray" else ()
    before = (*tables, *graph.before, *tables)
    after = (*tables, *graph.after)
    name = graph.model.name
    read_start = time.perf_counter()
    report = Report()
    repeated = Report()
    records = _read_records(graph, samples)
    read_s = (time.perf_counter() - read_start) / len(records)
    bar = progress_bar(console, "measuring, seconds", MEASURED_S)
    folder = tempfile.TemporaryDirectory(prefix="phrasebox-plan-")
    writer = ShardWriter(Path(folder.name), config.output.rows_per_file)
    with folder, set_up((*before, graph.model, *after)), closing(writer), bar as advance:
        measure_start = time.perf_counter()
        rows = rows_per_call(graph.model) if on_gpu else CPU_ROWS
        # The first call takes longer.
        first_texts = _texts(run_stages((*before, graph.model, *after), records[:rows], lambda *_: None))
        command_s = time.perf_counter() - start_s + (RAY_START_S if tables else 0.0)
        outputs: list[Record] = []
        while not outputs or (len(outputs) < len(records) and time.perf_counter() < measure_start + MEASURED_S):
            advance(round(time.perf_counter() - measure_start))
            batch = records[len(outputs) : len(outputs) + rows]
            model_inputs = run_stages(before, batch, report.stage)
            model_outputs = run_stages([graph.model], model_inputs, report.stage)
            run_stages([graph.model], model_inputs, repeated.stage)  # the model has embedded their texts by now
            outputs += run_stages(after, model_outputs, report.stage)
            write_start = time.perf_counter()
            writer.write(records_to_rows(outputs[-len(batch) :], **columns))
            report.stage("write", len(batch), time.perf_counter() - write_start)
        write_start = time.perf_counter()
        writer.close()
        report.stage("write", 0, time.perf_counter() - write_start)
        shard_bytes = sum(path.stat().st_size for path in Path(folder.name).rglob("*") if path.is_file())
    count = len(outputs)
    texts = _texts(outputs)
    busy_s = {step: entry.busy_s / count for step, entry in report.stages.items()}
    explain_s = repeated.stages[name].busy_s / count
    return Costs(
        images=count,
        failed=sum(record.error is not None for record in outputs),
        phrases=fmean(len(record.phrases) for record in outputs),
        steps={"read": read_s, **busy_s, name: explain_s},
        explain=name,
        text_s=max(0.0, busy_s[name] - explain_s) * count / max(1, len(texts - first_texts)),
        half_texts=len(_texts(outputs[: count // 2])),
        texts=len(texts),
        bytes=shard_bytes / count,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device=", ".join(report.stages[name].devices) or "none",
        first=MOST_IMAGES if is_wanted(graph, config) else SAMPLES if graph.calibration is not None else 0,
        start_s=command_s,
    )


def _read_records(graph: Graph, most: int) -> list[Record]:
    records = [Record.start(sample) for sample in islice(graph.reader.samples(plan_shards(graph.reader)), most)]
    if not records:
        raise InputError("the input holds no samples")
    return records


def _texts(records: Sequence[Record]) -> set[str]:
    return {phrase.text for record in records for phrase in record.phrases}
