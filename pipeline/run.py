"""A run from configuration to dataset, and what it would do, shown on its first samples."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import islice

from rich.console import Console
from rich.table import Table

from pipeline.config import RayEngine, RunConfig
from pipeline.domain import outside_domain, without_calibration
from pipeline.engines import chosen, engine
from pipeline.engines.inline import run_stages, samples_in
from pipeline.graph import Graph, build_graph, fetch_weights
from pipeline.output.folder import DatasetFolder, MayDelete
from pipeline.summary import Display, Report, duration, print_summary
from stages.contract.errors import PhraseboxError, TooManyErrors
from stages.contract.records import Record, Sample
from stages.contract.schema import records_to_rows
from stages.model.config import NO_MODEL
from stages.read import Shard, grouped_rows, plan_shards
from stages.sources import HEAT_MAPS
from stages.sources.base import RegionSource
from stages.storage import AnyPath


def run(
    config: RunConfig,
    console: Console | None = None,
    *,
    fresh: bool = False,
    may_delete: MayDelete = lambda _: False,
    graph: Graph | None = None,
    report: Report | None = None,
) -> AnyPath:
    """Run the pipeline, or go on where a former run of the same command stopped.

    Args:
        config: What to run.
        console: Where progress and the summary go; by default nowhere.
        fresh: Delete what a former run left in `output.path` and start over.
        may_delete: Asked before `fresh` deletes files that no run wrote; by default they are kept and the run refused.
        graph: What to run instead of the graph that the configuration asks for.
        report: Where to note what happens, for who wants to know it afterwards.

    Returns:
        The dataset's folder.

    Raises:
        TooManyErrors: The dataset is complete, and more rows failed than `output.max_error_share` allows.
        PhraseboxError: Before any work, what cannot be done; later, what the surroundings no longer allow.
    """
    console = console or Console(quiet=True)
    folder = DatasetFolder(config.output.path)
    graph = graph or build_graph(config)
    config = graph.settings(config)
    with folder.locked(), folder.writing():
        state = folder.begin(
            config, graph.fingerprint, calibration=graph.calibration, fresh=fresh, may_delete=may_delete
        )
        if state == "complete":
            console.print(f"{folder.path} is complete: nothing to do. --fresh starts over.", soft_wrap=True)
            _refuse_many_errors(folder.path, config.output.max_error_share)
            return folder.path
        if state == "started":
            console.print("\n".join([*folder.notes, f"going on with the run in {folder.path}"]), soft_wrap=True)
        report = report or Report()
        try:
            elsewhere = isinstance(config.engine, RayEngine) and config.engine.address  # each node has its own disk
            if graph.loads_model and not elsewhere:
                fetch_weights(config.model, lambda line: console.print(line, soft_wrap=True))
            with Display(console).shown() as display:
                display.doing("reading the input")
                shards = plan_shards(graph.reader)
                if (grouped := grouped_rows(shards)) is not None:
                    report.note(grouped)
                samples, asked = samples_in(shards), config.engine.kind
                config = chosen(config, samples)
                console.print(_first_line(config, graph, samples, asked), soft_wrap=True)
                display.doing("comparing the first images with those of the calibration")
                doubt, misgiving = _doubts(graph, shards, config, report)
                if doubt is not None and config.source.kind == HEAT_MAPS:
                    graph = without_calibration(graph)
                display.doing("loading the model" if config.engine.kind == "inline" else "starting Ray")
                display.update(report)
                engine(config.engine.kind)(graph, shards, folder, config, report, display.update)
        except PhraseboxError:
            if state == "new":
                folder.forget()
            raise
        model = {"name": config.model.label, **graph.recognised} if graph.loads_model else {"name": NO_MODEL}
        calibration = None if graph.calibration is None else graph.cuts.calibration
        total = folder.finish(
            config,
            report,
            model=model,
            calibration=graph.calibration,
            fitted_to=None if calibration is None else calibration.fitted_to,
            doubt=misgiving,
        )
    print_summary(
        console,
        total,
        report,
        folder.written_as,
        model=_model(config, graph) if graph.loads_model else NO_MODEL,
        scores=_scores(graph, config, doubt, misgiving),
    )
    _refuse_many_errors(folder.path, config.output.max_error_share)
    return folder.path


def _model(config: RunConfig, graph: Graph) -> str:
    """The model for people: its name, whose checkpoint it was found to be, and which files say what it is."""
    weights = f" with {config.model.weights}" if config.model.weights else ""
    layout, files = (graph.recognised.get(key, "") for key in ("layout", "described_by"))
    found = f" ({layout}{f' by {files}' if files else ''})" if layout and config.model.name != "demo" else ""
    return f"{config.model.label}{weights}{found}"


def _first_line(config: RunConfig, graph: Graph, samples: int | None, asked: str) -> str:
    """The model and the engine, and why `auto` has chosen this one. asked: `engine.kind` as it was given."""
    model = f"model: {_model(config, graph)}" if graph.loads_model else "no model"
    engine = "one process" if config.engine.kind == "inline" else "Ray"
    if asked == "auto":
        count = "an unknown number of samples" if samples is None else f"{samples:,} samples"
        inline = "which it completes before Ray has started"
        engine += f" for {count}" + (f", {inline}" if config.engine.kind == "inline" else "")
    return f"{model}; engine: {engine}"


def _doubts(graph: Graph, shards: Sequence[Shard], config: RunConfig, report: Report) -> tuple[str | None, str | None]:
    """Why the scores of a run only rank, and why a calibration that is used may be wrong here; None where it is not so.

    A calibration that the user names is used whatever the images are.
    """
    wanted = config.regions.calibration
    if isinstance(graph.model, RegionSource):
        return f"A score is {graph.model.score_means}", None
    if graph.calibration is None:
        return "No calibration fits this model with these settings; phrasebox calibrate fits one", None
    outside = outside_domain(graph, shards)
    if outside is None:
        return None, None
    report.note(outside.what)
    return (outside.what, None) if outside.in_regions and wanted == "auto" else (None, outside.what)


def _scores(graph: Graph, config: RunConfig, doubt: str | None, misgiving: str | None) -> str:
    """What the scores of a run mean, in sentences. doubt, misgiving: Those of `_doubts`."""
    if doubt is not None:
        cut = config.regions.rule == "fitted" and not isinstance(graph.model, RegionSource) and not graph.cuts.fitted
        mean = " Maps are cut at their mean, since regions.rule=fitted requires a calibration." if cut else ""
        return f"Scores are not calibrated: use them for ranking, not as probabilities. {doubt}.{mean}"
    if misgiving is not None:
        return f"Scores are calibrated, but may be too high or too low here. {misgiving}. phrasebox eval measures it."
    return "Scores are calibrated: on images like those of the fit, 8 of 10 regions with a score of 0.8 are right."


def _refuse_many_errors(dataset: AnyPath, allowed: float | None) -> None:
    """Raise TooManyErrors if all rows of a complete dataset failed, or more than the allowed share of them."""
    counts = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["counts"]
    failed, rows = counts["failed"], counts["written"]
    reasons = sorted(counts["failed_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    if rows and failed == rows:
        raise TooManyErrors(
            f"all {rows:,} rows failed; the column `error_detail` in {dataset} says why. "
            f"The commonest reason is {reasons[0][0]} ({reasons[0][1]:,} rows)"
        )
    if allowed is not None and failed > allowed * rows:
        raise TooManyErrors(
            f"{failed:,} of {rows:,} rows failed ({failed / rows:.2%}), at most {allowed:.2%} may "
            f"(output.max_error_share): {', '.join(f'{reason} {count:,}' for reason, count in reasons)}. "
            f"The dataset in {dataset} is complete; its columns `error` and `error_detail` say what is wrong"
        )


SAMPLES = 10


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
    first = (item for shard in shards for item in graph.reader.read(shard) if isinstance(item, Sample))
    records = [Record.start(sample) for sample in islice(first, samples)]
    if not records:
        console.print("the input holds no samples")
        return []
    if graph.loads_model:
        fetch_weights(config.model, lambda line: console.print(line, soft_wrap=True))
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
    method = config.explain.kind if config.source.kind == HEAT_MAPS else f"source {config.source.kind}"
    device = ", ".join(report.stages[graph.model.name].devices) or "not used: no sample has an image and a phrase"
    told = f"model: {_model(config, graph)}, {method}; device: {device}" if graph.loads_model else f"no model, {method}"
    console.print(told, soft_wrap=True)
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
