"""What a run would do, shown on its first samples. Nothing is written."""

from __future__ import annotations

import time
from itertools import islice

from rich.console import Console
from rich.table import Table

from pipeline.config import RunConfig
from pipeline.engines.batches import run_stages
from pipeline.graph import Graph, build_graph
from pipeline.summary import Report
from stages.contract.records import Record, Sample
from stages.contract.schema import records_to_rows
from stages.read import plan_shards

SAMPLES = 10


def preview(config: RunConfig, console: Console, samples: int = SAMPLES) -> list[Record]:
    """Take the first samples through all stages in this process, and print what comes of them.

    Returns:
        The records after all stages.

    Raises:
        PhraseboxError: Whatever would refuse the run before any work.
    """
    graph = build_graph(config)
    shards = plan_shards(graph.reader)
    known = [shard.samples for shard in shards]
    total = None if None in known else sum(count for count in known if count is not None)
    first = (item for shard in shards for item in graph.reader.read(shard) if isinstance(item, Sample))
    records = [Record.start(sample) for sample in islice(first, samples)]
    if not records:
        console.print("the input holds no samples")
        return []
    for stage in graph.stages:
        stage.setup()
    report = Report()
    start = time.perf_counter()
    answers = run_stages(graph.stages, records, report.stage)
    seconds = time.perf_counter() - start
    for stage in graph.stages:
        stage.teardown()
    console.print(_table(answers))
    _print_plan(console, config, graph, report, answers, total, seconds)
    return answers


def _table(records: list[Record]) -> Table:
    table = Table("sample", "phrases", "regions", title=f"the first {len(records)} samples", title_justify="left")
    table.columns[0].overflow = "fold"
    table.columns[2].justify = "right"
    for record in records:
        phrases = ", ".join(dict.fromkeys(phrase.text for phrase in record.phrases))
        shown = phrases or "no phrases" if record.error is None else f"error: {record.error}"
        table.add_row(record.sample.sample_id, shown, str(len(record.regions)))
    return table


def _print_plan(
    console: Console,
    config: RunConfig,
    graph: Graph,
    report: Report,
    records: list[Record],
    total: int | None,
    seconds: float,
) -> None:
    device = ", ".join(report.stages[graph.model.name].devices) or "not used: no sample has an image and a phrase"
    model = config.model.name or config.model.config
    weights = config.model.pretrained or config.model.weights
    console.print(f"model: {model}{f' with {weights}' if weights else ''}, {config.explain.kind}; device: {device}")
    if config.model.name == "demo":
        console.print("the demo model knows drawn things only: photographs need another one, see --model")
    per_image = seconds / len(records)
    console.print(f"speed: {1 / per_image:.1f} images/s in one process, measured on these samples without start-up")
    rows_bytes = records_to_rows(records, embed_images=config.output.embed_images).nbytes / len(records)
    path = config.output.path
    if total is None:
        console.print(f"would write to {path}: the number of samples is only known once they are read", soft_wrap=True)
        return
    files = -(-total // config.output.rows_per_file)
    console.print(f"time: about {_duration(total * per_image)} for {total:,} samples at that speed")
    written = f"{total:,} rows in {files:,} or more shards, about {total * rows_bytes / 1e6:,.1f} MB before compression"
    console.print(f"would write to {path}: {written}", soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
