"""Estimates of what a run takes: `phrasebox plan`.

The first samples of the input go through every step, in as many processes as the run has model workers, each on one
thread: so the figures hold for a machine whose cores are all busy, which share caches, memory and often the core
itself. A run over the first images shows what starting and ending take. The rest is arithmetic.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Final

from pipeline.config import RunConfig
from pipeline.domain import SAMPLES
from pipeline.engines import cores_here
from pipeline.engines.inline import call_rows, run_stages, set_up
from pipeline.graph import build_graph
from pipeline.run import run
from pipeline.summary import Report
from stages.contract.errors import InputError, ResourceError
from stages.contract.records import Record
from stages.contract.schema import records_to_rows, records_to_table, table_to_records
from stages.contract.stage import Stage
from stages.read import Reader, plan_shards
from stages.write import ShardWriter

RAY_CORES: Final = 0.1
"""Cores that Ray's own processes keep busy during a run, however little it does: the loops of the driver, the raylet
and the servers of state, statistics and logs, and the ledger (2 cores of an AMD EPYC, configs/measured/scale.md)."""

RAY_BATCH_S: Final = 0.12
"""Seconds of a core that these and the workers take to hand a batch of records from step to step, beside making tables
of records, which the sample shows (measured there, too)."""


PART_IMAGES: Final = 10_000_000
"""Most images of a part: its driver holds 80 MB of keys, and a resumed run reads a journal of 160 MB."""

DRIVER_RATE: Final = 5900.0
"""Images a second that one driver feeds to GPUs (configs/measured/scale.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of an image, measured on a sample, and of start and end, measured by a run over the first images."""

    images: int  # of the sample
    failed: int  # images of the sample that became rows with an error
    phrases: float  # an image
    steps: Mapping[str, float]  # step -> seconds an image; explaining without the texts
    explain: str  # the step that holds the model
    text_s: float  # seconds for a phrase that is seen for the first time
    half_texts: int  # different phrases in half of the sample
    texts: int  # different phrases in the whole sample
    bytes: float  # of the shards, an image
    memory_bytes: int  # peak of a process with all stages
    processes: int  # that measured at the same time
    device: str  # of the model, for people
    first: int = 0  # images of the run; the model gets as many at once
    ready_s: float = 0.0  # from the command until the model had answered them
    end_s: float = 0.0  # from there until the process had ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A place for a run."""

    cores: int  # of all nodes
    workers: int  # model workers, if the model computes on CPUs
    gpus: int = 0  # of all nodes; 0 leaves the model to the cores
    gpu_rate: float | None = None  # images a second of one GPU
    own_cores: float = 0.0  # cores that the engine's own processes keep busy
    own_s: float = 0.0  # seconds of a core that they take for each image


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The forecast of a run."""

    images: int
    seconds: float  # from the command to its end
    rate: float  # images a second between start and end
    limit: str  # of the rate: "cores", "model workers" or "GPUs"
    core_hours: float  # reserved for the run
    gpu_hours: float
    cores_per_gpu: float | None  # cores that keep one GPU busy
    disk_bytes: float  # of the dataset
    memory_bytes: float  # of all model workers, each with the other stages beside it
    texts: float  # different phrases to expect
    parts: int  # to cut the input into: of `PART_IMAGES` at most, and no driver feeds more than `DRIVER_RATE`
    side_by_side: int  # parts that run at once
    part_hours: float  # of each of them


def texts_in(costs: Costs, images: float) -> float:
    """Return the different phrases to expect in a number of images, by Heaps' law: a power of that number.

    The exponent is estimated from half of the sample and all of it.
    """
    if not costs.texts:
        return 0.0
    power = min(1.0, max(0.0, math.log2(costs.texts / max(1, costs.half_texts))))
    return float(costs.texts * (images / costs.images) ** power)


def forecast(costs: Costs, images: int, machine: Machine) -> Forecast:
    """Return what a number of images takes on a machine. Raise ValueError if the speed of its GPUs is unknown.

    Every worker embeds the phrases that are new to it. Cores are shared between steps.
    """
    beside = sum(seconds for step, seconds in costs.steps.items() if step != costs.explain) + machine.own_s
    cores, share = machine.cores - machine.own_cores, images / machine.workers
    explain = costs.steps[costs.explain] + costs.text_s * texts_in(costs, share) / share
    if machine.gpus:
        if machine.gpu_rate is None:
            raise ValueError("expected the images a second of a GPU")
        limits = {"GPUs": machine.gpus * machine.gpu_rate, "cores": cores / beside}
    else:
        limits = {"cores": cores / (beside + explain), "model workers": machine.workers / explain}
    limit = min(limits, key=lambda name: limits[name])
    seconds = costs.ready_s + max(0, images - costs.first) / limits[limit] + costs.end_s
    drivers = math.ceil(limits[limit] / DRIVER_RATE) if images > PART_IMAGES else 1
    parts = math.ceil(images / PART_IMAGES / drivers) * drivers
    return Forecast(
        images=images,
        seconds=seconds,
        rate=limits[limit],
        limit=limit,
        core_hours=machine.cores * seconds / 3600,
        gpu_hours=machine.gpus * seconds / 3600,
        cores_per_gpu=machine.gpu_rate * beside if machine.gpus and machine.gpu_rate is not None else None,
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
    from pipeline.engines.ray_cluster import CPU_MODEL_WORKERS  # noqa: PLC0415 - loads ray, for its engine only

    workers = engine.most_explain_workers or (1 if on_gpu else min(cores_here(), CPU_MODEL_WORKERS))
    return Machine(cores=cores_here(), workers=workers, gpus=int(on_gpu))


class HandedOn(Stage):
    """Makes a table of records and records of the table, as Ray's workers do to hand them on."""

    name: ClassVar[str] = "tables"

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Return the records of their table."""
        return table_to_records(records_to_table(batch))


def measure(config: RunConfig, samples: int, processes: int) -> Costs:
    """Take a sample through every step, in several processes at once, and run over the first images.

    The time to import, to load the model, to compare the first images with the calibration's (`pipeline.domain`), to
    start Ray and to write the manifest depends on machine, model and input, so it is taken from a real run, on this
    machine even if the configuration names a cluster. Nothing is left on the disk. Several processes compute on one
    thread each, all on the same at most `samples` images.

    Raise InputError if the input holds no samples, and PhraseboxError if the run would be rejected.
    """
    each = config
    if processes > 1:
        each = config.model_copy(update={"model": config.model.model_copy(update={"threads": 1})})
    found: list[Costs] = _apart(_costs, each, samples, processes=processes)
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="phrasebox-plan-", ignore_cleanup_errors=True) as folder:
        [(first, ready_s)] = _apart(_try, config, Path(folder), began)
        end_s = time.time() - began - ready_s
    return replace(
        found[0],
        steps={step: fmean(one.steps[step] for one in found) for step in found[0].steps},
        text_s=fmean(one.text_s for one in found),
        memory_bytes=max(one.memory_bytes for one in found),
        processes=processes,
        first=first,
        ready_s=ready_s,
        end_s=end_s,
    )


def _try(config: RunConfig, folder: Path, began: float) -> tuple[int, float]:
    """Run over the first images; return how many these are, and the seconds until the model had answered them."""
    report = Report(started_s=time.perf_counter() - (time.time() - began))
    output = config.output.model_copy(update={"path": folder / "out", "max_error_share": None})
    engine = config.engine.model_copy(update={"address": None})
    run(_limited(config, SAMPLES).model_copy(update={"output": output, "engine": engine}), report=report)
    answered = report.first_batch or report.first_rows  # a source of regions without a model answers nothing else
    return report.done, report.wall_time_s if answered is None else answered[0]


def _limited(config: RunConfig, samples: int) -> RunConfig:
    limit = min(samples, config.input.limit or samples)
    return config.model_copy(update={"input": config.input.model_copy(update={"limit": limit})})


def _costs(config: RunConfig, samples: int) -> Costs:
    graph = build_graph(_limited(config, samples))
    columns = graph.settings(config).output.columns
    hand_on = (HandedOn(),) if config.engine.kind == "ray" else ()
    stages = (*hand_on, *graph.before, *hand_on, graph.model, *hand_on, *graph.after)
    name = graph.model.name
    middle = stages.index(graph.model)
    records, report, again = _read(graph.reader), Report(), Report()
    if not records:
        raise InputError("the input holds no samples")
    folder = tempfile.TemporaryDirectory(prefix="phrasebox-plan-")
    with set_up(stages), folder, closing(ShardWriter(Path(folder.name), config.output.rows_per_file)) as writer:
        rows = call_rows(graph.model)
        warm = run_stages(stages, records[:rows], lambda *_: None)  # which takes longer the first time
        known = _texts(warm)
        start = time.perf_counter()
        records = _read(graph.reader)
        read_s, write_s = time.perf_counter() - start, 0.0
        finished: list[Record] = []
        for place in range(0, len(records), rows):
            prepared = run_stages(stages[:middle], records[place : place + rows], report.stage)
            explained = run_stages([graph.model], prepared, report.stage)
            run_stages([graph.model], prepared, again.stage)  # now that its texts are known
            finished += run_stages(stages[middle + 1 :], explained, report.stage)
            start = time.perf_counter()
            writer.write(records_to_rows(finished[place:], **columns))
            write_s += time.perf_counter() - start
        start = time.perf_counter()
        writer.close()
        write_s += time.perf_counter() - start
        written = sum(path.stat().st_size for path in Path(folder.name).rglob("*") if path.is_file())
    count, texts = len(finished), _texts(finished)
    steps = {"read": read_s, **{step: entry.busy_s for step, entry in report.stages.items()}, "write": write_s}
    new_s, steps[name] = max(0.0, steps[name] - again.stages[name].busy_s), again.stages[name].busy_s
    return Costs(
        images=count,
        failed=sum(record.error is not None for record in finished),
        phrases=fmean(len(record.phrases) for record in finished),
        steps={step: seconds / count for step, seconds in steps.items()},
        explain=name,
        text_s=new_s / max(1, len(texts - known)),
        half_texts=len(_texts(finished[: count // 2])),
        texts=len(texts),
        bytes=written / count,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        processes=1,
        device=", ".join(report.stages[name].devices) or "none",
    )


def _read(reader: Reader) -> list[Record]:
    return [Record.start(sample) for sample in reader.samples(plan_shards(reader))]


def _texts(records: Sequence[Record]) -> set[str]:
    return {phrase.text for record in records for phrase in record.phrases}


def _apart(function: Callable[..., Any], *arguments: Any, processes: int = 1) -> list[Any]:
    """Call a function in processes of its own, all at once; return the answers when the processes have ended.

    Raise ResourceError if a process dies, and what the function raises. Ctrl-C ends the processes without a word.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, spawn, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
            return [each.result() for each in [pool.submit(function, *arguments) for _ in range(processes)]]
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process that measured ended without an answer. If no message above says why, the system ended it for "
            "its memory: --set engine.explain_workers=1 measures with one"
        ) from error
