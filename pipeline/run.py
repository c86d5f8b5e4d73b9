"""A run from configuration to dataset."""

from __future__ import annotations

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.engines import engine
from pipeline.graph import build_graph
from pipeline.output import DatasetFolder, MayDelete
from pipeline.summary import Display, Report, print_summary
from stages.write.places import AnyPath


def run(
    config: RunConfig, console: Console, *, fresh: bool = False, may_delete: MayDelete = lambda _: False
) -> AnyPath:
    """Run the pipeline, or go on where a former run of the same command stopped; returns the dataset's folder.

    may_delete   asked before `fresh` deletes files that no run wrote

    Raises PhraseboxError: before any work for what cannot be done, later for what the surroundings no longer allow.
    """
    folder = DatasetFolder(config.output.path)
    graph = build_graph(config)
    with folder.locked(), folder.writing():
        state = folder.begin(
            config, graph.fingerprint, calibration=graph.calibration, fresh=fresh, may_delete=may_delete
        )
        if state == "complete":
            console.print(f"{folder.path} is complete: nothing to do. --fresh starts over.", soft_wrap=True)
            return folder.path
        if state == "started":
            console.print("\n".join([*folder.notes, f"going on with the run in {folder.path}"]), soft_wrap=True)
        report = Report()
        with Display(console).shown() as display:
            engine(config.engine.kind)(graph, folder, config, report, display.update)
        total = folder.finish(config, report, model=config.model.name or str(config.model.config))
    print_summary(console, total, report, folder.written_as)
    if graph.calibration is None and config.regions.calibration == "auto":
        console.print(
            f"score: {config.regions.score}, which ranks and is no probability: no calibration for this model with "
            "these settings (phrasebox calibrate fits one)",
            soft_wrap=True,
        )
    return folder.path
