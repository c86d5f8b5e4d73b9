"""The graph in one plain process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

from pipeline.config import RunConfig
from pipeline.engines import OnProgress
from pipeline.engines.batches import batch_rows, read_records, run_stages, samples_in
from pipeline.graph import Graph
from pipeline.output.folder import DatasetFolder
from pipeline.summary import Report
from stages.contract.schema import records_to_rows
from stages.read import Shard
from stages.write.parquet import ShardWriter


def run(
    graph: Graph,
    shards: Sequence[Shard],
    folder: DatasetFolder,
    config: RunConfig,
    report: Report,
    on_progress: OnProgress,
) -> None:
    """See `pipeline.engines.Engine`."""
    report.expected = samples_in(shards)
    written = folder.ids_written()
    todo = (
        record
        for number, shard in enumerate(shards)
        for record in read_records(graph.reader, shard, partial(report.read, number))
        if record.sample.id not in written
    )
    for stage in graph.stages:
        stage.setup()
    rows = batch_rows(graph.model)
    writer = ShardWriter(folder.data, config.output.rows_per_file)
    while batch := list(islice(todo, rows)):
        finished = run_stages(graph.stages, batch, report.stage)
        writer.write(records_to_rows(finished, embed_images=config.output.embed_images))
        report.rows(len(finished), sum(record.error is not None for record in finished))
        on_progress(report)
    writer.close()
    for stage in graph.stages:
        stage.teardown()
