"""Ways to run the graph: in one process, or on Ray Data. ENGINES: kind -> name of the module with `run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:  # the ledger's process imports this package, and needs none of them
    from pipeline.config import RunConfig
    from pipeline.first_look import FirstImages
    from pipeline.graph import Graph
    from pipeline.output.folder import DatasetFolder
    from pipeline.summary import Report
    from stages.contract.records import Record
    from stages.read import Shard

OnProgress: TypeAlias = "Callable[[Report], None]"
"""Called by an engine now and then, and after the last row."""

Engine: TypeAlias = (
    "Callable[[Graph, Sequence[Shard], DatasetFolder, RunConfig, Report, OnProgress, WarmUp | None], None]"
)
"""Reads those samples of the shards that have no row in the folder, runs the stages, and writes shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """A computation on the first images, before all others: its result decides the graph.

    Attributes:
        shards: The shards of the whole input, so that all of its parts compute the same images.
        compute: A function of a module. An engine calls it where its model worker would be; the stages before the
            model and the model's stage are set up.
        decide: Called in the driver with the result, or with None if workers died of the computation. Returns the graph
            to run, and records that need only the stages after the model.
    """

    shards: Sequence[Shard]
    compute: Callable[[Graph, Sequence[Shard]], FirstImages]
    decide: Callable[[FirstImages | None], tuple[Graph, Sequence[Record]]]


ENGINES: Final = {"inline": "pipeline.engines.inline", "ray": "pipeline.engines.ray_data"}

RAY_ENVIRONMENT: Final = {
    # Ray prints a paragraph to stdout for each dead worker; our report counts them instead.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # Ray's C++ side logs an error for each pool of actors, about arguments that Ray Data itself chose.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray keeps the last 100,000 tasks, hundreds of MB, for a dashboard that is not started here.
    "RAY_task_events_report_interval_ms": "0",
    # Without it Ray warns that it will some day no longer hide the GPUs from workers that asked for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Each dataset claims a part of the cluster and says every ten seconds that it lives. The claim of a killed driver
    # lapses after this time, by default three minutes: until then the next run has only what is left.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
}
"""Environment defaults for Ray 2.60, which reads them at `import ray`. Values that the user has set stay."""

AT_MOST_INLINE: Final = 100
"""The most samples that `auto` runs in one process on more than two cores.

On 2 cores of an AMD EPYC 100 photographs with `photo` and configs/photos.yaml take 43 s in one process and 58 s on Ray,
of which the start is 20 s; 100 scenes with `demo` take 13 and 36 s.
"""

AT_MOST_INLINE_ON_TWO_CORES: Final = 1000
"""The same on one core or two, which one process keeps busy: 400 scenes take 13 s, and 25 s on Ray."""

CPU_MODEL_WORKERS: Final = 8
"""Default maximum of model workers on a machine without GPUs; each holds a copy of the model and shares the cores."""


def cores_here() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_engine(config: RunConfig, samples: int | None) -> RunConfig:
    """Return the configuration with a decision for `engine.kind=auto`; other kinds stay.

    A configuration that sets another key of the engine means Ray.

    samples: The number of samples of its input; None, if only reading will show it, counts as many.
    """
    from pipeline.config import EngineConfig  # noqa: PLC0415  as above

    if config.engine.kind != "auto":
        return config
    most = AT_MOST_INLINE if cores_here() > 2 else AT_MOST_INLINE_ON_TWO_CORES
    is_small = samples is not None and samples <= most and config.engine == EngineConfig()
    engine = config.engine.model_copy(update={"kind": "inline" if is_small else "ray"})
    return config.model_copy(update={"engine": engine})


def load_engine(kind: str) -> Engine:
    """Return the engine of a kind; import ray only for ray."""
    if kind == "ray":
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    run: Engine = import_module(ENGINES[kind]).run
    return run
