"""Ways to run the graph: in one process, or on Ray Data. ENGINES: kind -> name of the module with `run`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Final

from pipeline.config import RunConfig
from pipeline.graph import Graph
from pipeline.output.folder import DatasetFolder
from pipeline.summary import Report

Engine = Callable[[Graph, DatasetFolder, RunConfig, Report, Callable[[Report], None]], None]
"""Reads what is not yet in the folder, runs the stages, writes shards; calls the last argument now and then."""

ENGINES: Final = {"inline": "pipeline.engines.inline", "ray": "pipeline.engines.ray_data"}


def engine(kind: str) -> Engine:
    """The engine of a kind; imports ray only for ray."""
    # Ray tells of every worker and node that dies on standard output, a paragraph each; the report counts them. Read
    # when ray is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    run: Engine = import_module(ENGINES[kind]).run
    return run
