"""What an image takes of each step, measured on a sample of the input.

As many processes as the run would have model workers do the same work at the same time, each on one thread. So the
figures hold for a machine whose cores are all busy, which share caches, memory and often the core itself.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import fmean
from threading import BrokenBarrierError
from typing import Any, Final

from pipeline.config import RunConfig
from pipeline.engines.inline import call_rows
from pipeline.graph import Graph, build_graph
from pipeline.terminal import keeping_handlers
from stages.contract.errors import InputError, PhraseboxError, ResourceError
from stages.contract.records import Record
from stages.contract.schema import records_to_rows, records_to_table, table_to_records
from stages.contract.stage import Stage
from stages.read import Shard, plan_shards
from stages.write import ShardWriter

READ: Final = "read"
WRITE: Final = "write"

TABLES: Final = "tables"
"""Making tables of records and records of tables, which Ray's workers do to hand them on."""

PLACES: Final = 16
"""The sample comes from this many places of the input, where it has so many shards."""

READY_SECONDS: Final = 600
"""How long a process waits for the others to have loaded the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What an image takes.

    Attributes:
        images: Samples that were measured.
        failed: Those of them that became rows with an error.
        phrases: Phrases an image.
        steps: Step -> seconds an image; explaining without the texts.
        explain: The step that holds the model.
        text_s: Seconds for a phrase that is seen for the first time.
        half_texts: Different phrases in half of the sample.
        texts: Different phrases in all of it.
        last_s: Seconds an image of the steps after the model, which stand in `steps` too.
        bytes: Of the shards, an image.
        memory_bytes: The most that a process with all stages had.
        ready_s: Seconds until a process had imported and loaded the model.
        processes: How many measured at the same time.
        device: Where the model computed, for people.
    """

    images: int
    failed: int
    phrases: float
    steps: Mapping[str, float]
    explain: str
    text_s: float
    half_texts: int
    texts: int
    last_s: float
    bytes: float
    memory_bytes: int
    ready_s: float
    processes: int
    device: str


def measure(config: RunConfig, samples: int, processes: int) -> Costs:
    """Take a sample through every step. Nothing is left on the disk.

    Args:
        config: The run. Where there are several processes each computes on one thread.
        samples: Images, fewer if the input holds no more.
        processes: How many do the same at once.

    Raises:
        InputError: The input holds no samples.
        PhraseboxError: Whatever would refuse the run.
    """
    if processes > 1:
        config = config.model_copy(update={"model": config.model.model_copy(update={"threads": 1})})
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.SimpleQueue()
    start = time.time()
    workers = [
        context.Process(target=_worker, args=(config, samples, start, barrier, answers), daemon=True)
        for _ in range(processes)
    ]
    with keeping_handlers():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends the others
        for worker in workers:
            worker.start()
    try:
        return _mean([_answer(workers, answers, start) for _ in workers], processes)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _answer(workers: Sequence[Any], answers: Any, start: float) -> Costs:
    while answers.empty():
        if any(worker.exitcode for worker in workers) and answers.empty():
            raise ResourceError(
                f"a process that measured ended after {time.time() - start:.0f} s without an answer. If nothing above "
                "says why, the system ended it for its memory: --set engine.explain_workers=1 measures with one"
            )
        time.sleep(0.05)
    answer = answers.get()
    if isinstance(answer, Exception):
        raise answer
    found: Costs = answer
    return found


def _mean(found: Sequence[Costs], processes: int) -> Costs:
    """The same sample, measured several times."""
    first = found[0]
    return Costs(
        images=first.images,
        failed=first.failed,
        phrases=first.phrases,
        steps={step: fmean(each.steps[step] for each in found) for step in first.steps},
        explain=first.explain,
        text_s=fmean(each.text_s for each in found),
        half_texts=first.half_texts,
        texts=first.texts,
        last_s=fmean(each.last_s for each in found),
        bytes=first.bytes,
        memory_bytes=max(each.memory_bytes for each in found),
        ready_s=max(each.ready_s for each in found),
        processes=processes,
        device=first.device,
    )


def _worker(config: RunConfig, samples: int, began: float, barrier: Barrier, answers: Any) -> None:
    try:
        answers.put(measured_here(config, samples, began, barrier))
    except PhraseboxError as error:
        answers.put(error)
        barrier.abort()
    except BrokenBarrierError:
        pass  # another process has said why


def measured_here(config: RunConfig, samples: int, began: float, barrier: Barrier | None = None) -> Costs:
    """What `measure` does, in this process alone.

    Args:
        config: The run.
        samples: Images.
        began: When this process was started, by `time.time`.
        barrier: Where all processes wait for each other before any of them measures.

    Raises:
        InputError: The input holds no samples.
    """
    graph = build_graph(config)
    config = graph.settings(config)
    travels = config.engine.kind == "ray"
    records = list(islice(_spread(graph, plan_shards(graph.reader), samples), samples))
    if not records:
        raise InputError("the input holds no samples")
    graph.model.setup()
    ready_s = time.time() - began
    first = _warm(graph, records)
    known, size = set(first), call_rows(graph.model)
    if barrier is not None:
        barrier.wait(READY_SECONDS)
    steps: dict[str, float] = {}
    finished: list[Record] = []
    name = graph.model.name
    text_costs: list[tuple[float, int]] = []
    start = time.perf_counter()
    read = list(islice(_spread(graph, plan_shards(graph.reader), samples), samples))
    steps[READ] = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="phrasebox-plan-") as folder:
        writer = ShardWriter(Path(folder), config.output.rows_per_file)
        for place in range(0, len(read), size):
            batch = _handed_on(read[place : place + size], steps) if travels else read[place : place + size]
            prepared = _through(graph.before, batch, steps)
            batch = _handed_on(prepared, steps) if travels else prepared
            before = steps.get(name, 0.0)
            explained = _through([graph.model], batch, steps)
            new = {phrase.text for record in explained for phrase in record.phrases} - known
            known |= new
            if place // size % 2 == 0:
                # Again, now that its texts are known: what it takes less is what the texts take.
                again: dict[str, float] = {}
                _through([graph.model], batch, again)
                text_costs.append((steps[name] - before - again[name], len(new)))
            done = _through(graph.after, _handed_on(explained, steps) if travels else explained, steps)
            start = time.perf_counter()
            writer.write(records_to_rows(done, **config.output.columns))
            steps[WRITE] = steps.get(WRITE, 0.0) + time.perf_counter() - start
            finished += done
        start = time.perf_counter()
        writer.close()
        steps[WRITE] += time.perf_counter() - start
        size_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    forwards = graph.model.take_forwards()
    texts = [[phrase.text for phrase in record.phrases] for record in finished]
    different = {text for own in texts for text in own}
    text_s = max(0.0, sum(spent for spent, _ in text_costs)) / max(1, sum(new for _, new in text_costs))
    steps[name] = max(0.0, steps[name] - text_s * len(different - first))
    for stage in graph.stages:
        stage.teardown()
    last = (*(stage.name for stage in graph.after), WRITE)
    return Costs(
        images=len(finished),
        failed=sum(record.error is not None for record in finished),
        phrases=fmean(map(len, texts)),
        steps={step: seconds / len(finished) for step, seconds in steps.items()},
        explain=name,
        text_s=text_s,
        half_texts=len({text for own in texts[: len(texts) // 2] for text in own}),
        texts=len(different),
        last_s=sum(steps[step] for step in last) / len(finished),
        bytes=size_bytes / len(finished),
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        ready_s=ready_s,
        processes=1,
        device="none" if forwards is None else forwards.device,
    )


def _warm(graph: Graph, records: Sequence[Record]) -> set[str]:
    """Set up the other stages, and take a few records through all, which takes longer the first time.

    Returns their texts, which the model knows from then on.
    """
    others: tuple[Stage, ...] = (*graph.before, *graph.after)
    for stage in others:
        stage.setup()
    first = _through(graph.stages, records[: graph.model.batch_rows()], {})
    return {phrase.text for record in first for phrase in record.phrases}


def _handed_on(records: Sequence[Record], steps: dict[str, float]) -> list[Record]:
    """Records as another worker gets them, and the seconds of that added to `steps`."""
    start = time.perf_counter()
    answers = table_to_records(records_to_table(records))
    steps[TABLES] = steps.get(TABLES, 0.0) + time.perf_counter() - start
    return answers


def _through(stages: Sequence[Stage], records: Sequence[Record], steps: dict[str, float]) -> list[Record]:
    """Take records through stages, and add the seconds of each to `steps`."""
    answers = list(records)
    for stage in stages:
        start = time.perf_counter()
        answers = stage.process(answers)
        steps[stage.name] = steps.get(stage.name, 0.0) + time.perf_counter() - start
    return answers


def _spread(graph: Graph, shards: Sequence[Shard], samples: int) -> Iterator[Record]:
    """Samples from evenly spaced shards, then from the others."""
    places = min(PLACES, len(shards))
    chosen = [place * len(shards) // places for place in range(places)]
    order = [*chosen, *sorted(set(range(len(shards))) - set(chosen))]
    for number in order:
        first = islice(graph.reader.samples([shards[number]]), -(-samples // places))
        yield from map(Record.start, first)
