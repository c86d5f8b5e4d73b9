"""A run from configuration to dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.domain import outside_domain, without_calibration
from pipeline.engines import engine
from pipeline.graph import Graph, build_graph
from pipeline.output.folder import DatasetFolder, MayDelete
from pipeline.summary import Display, Report, print_summary
from stages.contract.errors import PhraseboxError, TooManyErrors
from stages.read import Shard, plan_shards
from stages.storage import AnyPath


def run(
    config: RunConfig, console: Console | None = None, *, fresh: bool = False, may_delete: MayDelete = lambda _: False
) -> AnyPath:
    """Run the pipeline, or go on where a former run of the same command stopped.

    Args:
        config: What to run.
        console: Where progress and the summary go; by default nowhere.
        fresh: Delete what a former run left in `output.path` and start over.
        may_delete: Asked before `fresh` deletes files that no run wrote; by default they are kept and the run refused.

    Returns:
        The dataset's folder.

    Raises:
        TooManyErrors: The dataset is complete, and more rows failed than `output.max_error_share` allows.
        PhraseboxError: Before any work, what cannot be done; later, what the surroundings no longer allow.
    """
    console = console or Console(quiet=True)
    folder = DatasetFolder(config.output.path)
    graph = build_graph(config)
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
        report = Report()
        try:
            with Display(console).shown() as display:
                shards = plan_shards(graph.reader)
                doubt = _doubt(graph, shards, config, report)
                if doubt is not None:
                    graph = without_calibration(graph)
                display.update(report)
                engine(config.engine.kind)(graph, shards, folder, config, report, display.update)
        except PhraseboxError:
            if state == "new":
                folder.forget()
            raise
        model = config.model.name or str(config.model.config)
        total = folder.finish(config, report, model=model, calibration=graph.calibration)
    print_summary(console, total, report, folder.written_as)
    if doubt is not None and config.regions.calibration == "auto":
        ranks = f"score: {config.regions.score}, which ranks and is no probability"
        console.print(f"{ranks}: {doubt}", soft_wrap=True)
    _refuse_many_errors(folder.path, config.output.max_error_share)
    return folder.path


def _doubt(graph: Graph, shards: Sequence[Shard], config: RunConfig, report: Report) -> str | None:
    """Why the scores of a run only rank; None if a calibration makes them probabilities.

    A calibration that the user names is used whatever the pictures are; the report says what is wrong with it.
    """
    wanted = config.regions.calibration
    if graph.calibration is None:
        return "no calibration for this model with these settings (phrasebox calibrate fits one)"
    doubt = outside_domain(graph, shards)
    if doubt is not None:
        report.note(f"{doubt}: {'scores only rank' if wanted == 'auto' else f'{wanted} may be wrong here'}")
    return doubt if wanted == "auto" else None


def _refuse_many_errors(dataset: AnyPath, allowed: float | None) -> None:
    """Raise TooManyErrors if more rows of a complete dataset failed than a share of them, by its manifest."""
    if allowed is None:
        return
    counts = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["counts"]
    failed, rows = counts["failed"], counts["written"]
    if failed > allowed * rows:
        reasons = sorted(counts["failed_by_reason"].items(), key=lambda item: (-item[1], item[0]))
        raise TooManyErrors(
            f"{failed:,} of {rows:,} rows failed ({failed / rows:.2%}), at most {allowed:.2%} may "
            f"(output.max_error_share): {', '.join(f'{reason} {count:,}' for reason, count in reasons)}. "
            f"The dataset in {dataset} is complete; its columns `error` and `error_detail` say what is wrong"
        )
