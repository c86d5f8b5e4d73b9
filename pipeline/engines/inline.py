"""The graph in one plain process; its parts serve whoever runs stages: Ray's workers, `eval` and the viewer."""

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
    from pipeline.engines import FirstLook, OnProgress
    from pipeline.graph import Graph
    from pipeline.output.folder import DatasetFolder
    from pipeline.summary import Report

BATCH_ROWS: Final = 32
"""The fewest records that travel together: few enough to show progress, many enough to be worth a message."""


def batch_rows(model: Stage, device: Device | None = None) -> int:
    """Return how many records travel together: a multiple of what the model takes at once (see `Stage.batch_rows`)."""
    at_once = model.batch_rows(device)
    return -(-BATCH_ROWS // at_once) * at_once


def call_rows(model: Stage, device: Device | None = None) -> int:
    """Return how many records the model gets at once: a multiple of its batch, see `Stage.call_batches`."""
    at_once = model.batch_rows(device)
    return -(-max(BATCH_ROWS, at_once * model.call_batches(device)) // at_once) * at_once


def samples_in(shards: Sequence[Shard]) -> int | None:
    """Return the number of samples in shards; None if the reader does not know it before reading."""
    counts = [shard.samples for shard in shards]
    return None if None in counts else sum(count for count in counts if count is not None)


def read_records(reader: Reader, shard: Shard, on_end: Callable[[int, Counter[str]], Any]) -> Iterator[Record]:
    """Yield the records of an input shard.

    on_end: Called after the last record with the number of samples, and of rows without one by reason.
    """
    samples, skipped = 0, Counter[str]()
    for item in read_shard(reader, shard):
        if isinstance(item, SkippedRow):
            skipped[item.reason] += 1
        else:
            samples += 1
            yield Record.start(item)
    on_end(samples, skipped)


@contextmanager
def set_up(stages: Sequence[Stage]) -> Iterator[None]:
    """Set stages up for the block, and tear them down at its end, also where it ends with an exception."""
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
    first: FirstLook | None = None,
) -> None:
    """See `pipeline.engines.Engine`."""
    report.expected = samples_in(shards)
    report.already = len(folder.journal.keys)
    explained: Sequence[Record] = ()
    ready = (*graph.before, graph.model)
    with ExitStack() as stack:
        stack.enter_context(set_up(ready))
        if first is not None:
            graph, explained = first.decide(first.look(graph, first.shards))
        written = folder.journal.keys_with(explained)
        stack.enter_context(set_up([stage for stage in graph.stages if stage not in ready]))
        # A run that is stopped writes the rows that it has, so that the same command does not compute them again.
        writer = stack.enter_context(closing(ShardWriter(folder.data, config.output.rows_per_file)))
        todo = (
            record
            for number, shard in enumerate(shards)
            for record in read_records(graph.reader, shard, partial(report.read, number))
            if not is_among(record.sample.key, written)
        )
        rows = call_rows(graph.model)

        def write(stages: Sequence[Stage], batch: list[Record]) -> None:
            finished = run_stages(stages, batch, report.stage)
            writer.write(records_to_rows(finished, **config.output.columns))
            report.rows(len(finished), sum(record.error is not None for record in finished))
            on_progress(report)

        if explained:
            write(graph.after, list(explained))
        while batch := list(islice(todo, rows)):
            write(graph.stages, batch)
