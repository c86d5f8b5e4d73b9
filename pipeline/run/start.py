"""Start the engine of a run. ENGINES: kind -> name of the module with `start`; PROCESSES: what starts before it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Final

from phrasebox.pipeline.run.decisions import Run, RunInput, Session
from phrasebox.pipeline.run.engines import RAY_ENVIRONMENT, Engine
from phrasebox.stages.files.storage import AnyPath

ENGINES: Final = {
    "inline": "phrasebox.pipeline.run.engines.inline",
    "ray": "phrasebox.pipeline.run.engines.ray_data",
}

PROCESSES: Final = {"ray": "phrasebox.pipeline.run.engines.ray_processes"}


def start_processes(run_input: RunInput, output: AnyPath, *, is_new: bool) -> AbstractContextManager[Any]:
    """Start the processes of the engine for a block, before the libraries of the model are loaded; import ray for ray.

    output: The dataset's folder. is_new: Whether it has no rows.
    """
    kind = run_input.config.engine.kind
    if kind not in PROCESSES:
        return nullcontext()
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    processes: AbstractContextManager[Any] = import_module(PROCESSES[kind]).start(
        run_input.config, run_input.pieces, output, is_new=is_new
    )
    return processes


def start_engine(run: Run, session: Session, processes: Any) -> AbstractContextManager[Engine]:
    """Start the engine of a run for a block, resolved as `choose_engine` does.

    Samples that have a row in the session's folder are left out, and the others' rows go there.

    processes: Those of `start_processes`.
    """
    module = import_module(ENGINES[run.config.engine.kind])
    engine: AbstractContextManager[Engine] = module.start(run, session, processes)
    return engine
