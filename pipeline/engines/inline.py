"""The graph in one plain process. Ray's workers, `eval` and the viewer run stages by its functions, too."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from stages.contract.records import Record, is_among
from stages.contract.schema import records_to_rows
from stages.contract.stage import Device, Stage
from stages.read import Reader, Shard, SkippedRow, read_shard
from stages.write import ShardWriter

if TYPE_CHECKING:  # Ray's workers, which import this module, need none of them
    from pipeline.config import RunConfig
    from pipeline.engines import OnProgress, WarmUp
    from pipeline.graph import Graph
    from pipeline.output.folder import DatasetFolder
    from pipeline.summary import Report

BATCH_ROWS: Final = 32
"""The fewest records of a batch: few enough to show progress, many enough to be worth a message."""


def rows_per_batch(model: Stage, device: Device | None = None) -> int:
    """Return how many records travel together: a multiple of `Stage.forward_batch_size`."""
    size = model.forward_batch_size(device)
    return -(-BATCH_ROWS // size) * size


def rows_per_call(model: Stage, device: Device | None = None) -> int:
    """Return how many records the model gets at once: whole forward batches, see `Stage.batches_per_call`."""
    size = model.forward_batch_size(device)
    return -(-max(BATCH_ROWS, size * model.batches_per_call(device)) // size) * size


def samples_in(shards: Sequence[Shard]) -> int | None:
    """Return the number of samples in shards; None if the reader does not know it before reading."""
    counts = [shard.samples for shard in shards]
    return None if None in counts else sum(count for count in counts if count is not None)


def read_records(reader: Reader, shard: Shard, on_end: Callable[[int, Counter[str]], Any]) -> Iterator[Record]:
    """Yield the records of an input shard.

    on_end: Called after the last record with the number of samples, and of rows without one by reason.
    """
    samples = 0
    skipped: Counter[str] = Counter()
    for item in read_shard(reader, shard):
        if isinstance(item, SkippedRow):
            skipped[item.reason] += 1
        else:
            samples += 1
            yield Record.start(item)
    on_end(samples, skipped)


@contextmanager
def set_up(stages: Sequence[Stage]) -> Iterator[None]:
    """Set stages up for the block, and tear them down at its end, also after an exception."""
    with ExitStack() as ends:
        for stage in stages:
            stage.setup()
            ends.callback(stage.teardown)
        yield


def run_stages(stages: Sequence[Stage], records: list[Record], on_progress: Callable[..., Any]) -> list[Record]:
    """Return a batch of records after stages that are set up, in order. Raise RuntimeError if one does not answer all.

    on_progress: Called after each stage with the arguments of `Report.stage`.
    """
    for stage in stages:
        start = time.perf_counter()
        answers = stage.process(records)
        if len(answers) != len(records):
            raise RuntimeError(f"stage {stage.name} answered {len(answers)} of {len(records)} records")
        on_progress(stage.name, len(records), time.perf_counter() - start, stage.take_forwards())
        records = answers
    return records


def run(
    graph: Graph,
    shards: Sequence[Shard],
    folder: DatasetFolder,
    config: RunConfig,
    report: Report,
    on_progress: OnProgress,
    warm_up: WarmUp | None = None,
) -> None:
    """See `pipeline.engines.Engine`."""
    report.expected = samples_in(shards)
    report.previous_rows = len(folder.journal.keys)
    first_records: Sequence[Record] = ()
    first_stages = (*graph.before, graph.model)
    with ExitStack() as stack:
        stack.enter_context(set_up(first_stages))
        if warm_up is not None:
            graph, first_records = warm_up.decide(warm_up.compute(graph, warm_up.shards))
        keys = folder.journal.keys_with(first_records)
        stack.enter_context(set_up([stage for stage in graph.stages if stage not in first_stages]))
        # A run that is stopped writes the rows that it has, so that the same command does not compute them again.
        writer = stack.enter_context(closing(ShardWriter(folder.data, config.output.rows_per_file)))
        todo = (
            record
            for number, shard in enumerate(shards)
            for record in read_records(graph.reader, shard, partial(report.read, number))
            if not is_among(record.sample.key, keys)
        )
        rows = rows_per_call(graph.model)

        def write(stages: Sequence[Stage], batch: list[Record]) -> None:
            outputs = run_stages(stages, batch, report.stage)
            writer.write(records_to_rows(outputs, **config.output.columns))
            report.rows(len(outputs), sum(record.error is not None for record in outputs))
            on_progress(report)

        if first_records:
            write(graph.after, list(first_records))
        while batch := list(islice(todo, rows)):
            write(graph.stages, batch)
