"""Start the engine of a run. ENGINES: kind -> name of the module with `start`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Final

from phrasebox.pipeline.run.decisions import Run, Session
from phrasebox.pipeline.run.engines import RAY_ENVIRONMENT, Engine

ENGINES: Final = {
    "inline": "phrasebox.pipeline.run.engines.inline",
    "ray": "phrasebox.pipeline.run.engines.ray_data",
}


def start_engine(run: Run, session: Session) -> AbstractContextManager[Engine]:
    """Start the engine of a run for a block, resolved as `choose_engine` does; import ray only for ray.

    Samples that have a row in the session's folder are left out, and the others' rows go there.
    """
    kind = run.config.engine.kind
    if kind == "ray":
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    engine: AbstractContextManager[Engine] = import_module(ENGINES[kind]).start(run, session)
    return engine
