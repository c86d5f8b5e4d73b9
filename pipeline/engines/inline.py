"""The graph in one plain process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from pipeline.config import RunConfig
from pipeline.engines.batches import batch_rows, run_stages
from pipeline.graph import Graph
from pipeline.output.folder import DatasetFolder
from pipeline.summary import Report
from stages.contract.records import Record
from stages.contract.schema import records_to_rows
from stages.read import Shard, Skipped, plan_shards, read_shard
from stages.write.parquet import ShardWriter


def run(graph: Graph, folder: DatasetFolder, config: RunConfig, report: Report, show: Callable[[Report], None]) -> None:
    """See `pipeline.engines.Engine`."""
    shards = plan_shards(graph.reader)
    written = folder.ids_written()
    records = _read(graph, shards, report)
    todo = (record for record in records if record.sample.id not in written) if written else records
    for stage in graph.stages:
        stage.setup()
    writer = ShardWriter(folder.data, config.output.rows_per_file)
    rows = batch_rows(graph.model)
    while batch := list(islice(todo, rows)):
        finished = run_stages(graph.stages, batch, report.stage)
        writer.write(records_to_rows(finished, embed_images=config.output.embed_images))
        report.rows(len(finished), sum(record.error is not None for record in finished))
        show(report)
    writer.close()
    for stage in graph.stages:
        stage.teardown()


def _read(graph: Graph, shards: Sequence[Shard], report: Report) -> Iterator[Record]:
    counts = [shard.samples for shard in shards]
    if None not in counts:
        report.expected = sum(count for count in counts if count is not None)
    for number, shard in enumerate(shards):
        samples, skipped = 0, Counter[str]()
        for item in read_shard(graph.reader, shard):
            if isinstance(item, Skipped):
                skipped[item.reason] += 1
            else:
                samples += 1
                yield Record.start(item)
        report.read(number, samples, skipped)
