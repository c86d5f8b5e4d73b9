"""A preview of a run on its first samples: `phrasebox run --dry-run`."""

from __future__ import annotations

import time
from itertools import islice
from typing import Final

from rich.console import Console
from rich.table import Table

from pipeline.config import RunConfig
from pipeline.engines.inline import run_stages, samples_in, set_up
from pipeline.graph import Graph, build_graph, fetch_weights
from pipeline.summary import Report, duration, model_in_words
from stages.contract.records import Record
from stages.contract.schema import records_to_rows
from stages.read import grouped_rows, plan_shards
from stages.sources import HEAT_MAPS

SAMPLES: Final = 10


def preview(config: RunConfig, console: Console, samples: int = SAMPLES) -> list[Record]:
    """Take the first samples through all stages in this process, and print what comes of them. Nothing is written.

    Returns:
        The records after all stages.

    Raises:
        PhraseboxError: Whatever would refuse the run before any work.
    """
    graph = build_graph(config)
    config = graph.settings(config)
    shards = plan_shards(graph.reader)
    if (grouped := grouped_rows(shards)) is not None:
        console.print(grouped, soft_wrap=True)
    total = samples_in(shards)
    records = [Record.start(sample) for sample in islice(graph.reader.samples(shards), samples)]
    if not records:
        console.print("the input holds no samples")
        return []
    if graph.loads_model:
        fetch_weights(config.model, lambda line: console.print(line, soft_wrap=True))
    report = Report()
    with set_up(graph.stages):
        start = time.perf_counter()
        answers = run_stages(graph.stages, records, report.stage)
        seconds = time.perf_counter() - start
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
    method = config.explain.kind if config.source.kind == HEAT_MAPS else f"source {config.source.kind}"
    device = ", ".join(report.stages[graph.model.name].devices) or "not used: no sample has an image and a phrase"
    model = f"model: {model_in_words(config, graph)}" if graph.loads_model else "no model"
    console.print(f"{model}, {method}" + (f"; device: {device}" if graph.loads_model else ""), soft_wrap=True)
    if config.model.name == "demo" and graph.loads_model:
        console.print("the demo model knows drawn things only: photographs need another one, see --model")
    per_image = seconds / len(records)
    console.print(f"speed: {1 / per_image:.1f} images/s in one process, measured on these samples without start-up")
    rows_bytes = records_to_rows(records, **config.output.columns).nbytes / len(records)
    path = config.output.path
    if total is None:
        console.print(f"would write to {path}: the number of samples is only known once they are read", soft_wrap=True)
        return
    files = -(-total // config.output.rows_per_file)
    console.print(f"time: about {duration(total * per_image)} for {total:,} samples at that speed")
    written = f"{total:,} rows in {files:,} or more shards, about {total * rows_bytes / 1e6:,.1f} MB before compression"
    console.print(f"would write to {path}: {written}", soft_wrap=True)
