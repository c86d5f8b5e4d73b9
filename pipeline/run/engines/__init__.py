"""Ways to run the steps: in one process, or on Ray Data. `start.py` starts one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from phrasebox.stages.contract.errors import ConfigError

if TYPE_CHECKING:  # the ledger's process imports this package, and needs none of them
    from phrasebox.pipeline.config.run_config import EngineConfig
    from phrasebox.pipeline.output.first_images import OnProgress
    from phrasebox.pipeline.run.steps import AnySteps
    from phrasebox.stages.contract.records import Record

AnswerT = TypeVar("AnswerT")


class Engine(Protocol):
    """A started engine."""

    def compute_first(self, compute: Callable[[AnySteps, OnProgress], AnswerT]) -> AnswerT | None:
        """Call a function where the model's worker is, with the run's stages, set up to the model.

        Return None if workers died of it again and again. compute: A function of a module, or a
        part of one. It reports its progress by its second argument.
        """

    def make_rows(self, steps: AnySteps, first_records: Sequence[Record] = ()) -> None:
        """Run stages over the samples, and write shards. Raise PhraseboxError.

        steps: The stages; `first_records` need only the `last_stages`.
        """


RAY_VERSION: Final = "2.60"  # the only one whose private parts were seen, see `ray_data`

HOW_TO_INSTALL_RAY: Final = "pip install 'phrasebox[ray]'"

RAY_ENVIRONMENT: Final = {
    # Ray prints a paragraph to stdout for each dead worker; our report counts them instead.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # Ray's C++ side logs an error for each pool of actors, about arguments that Ray Data itself
    # chose.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray keeps the last 100,000 tasks, hundreds of MB, for a dashboard that is not started here.
    "RAY_task_events_report_interval_ms": "0",
    # Without it Ray warns that it will some day no longer hide the GPUs from workers that asked
    # for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Each dataset claims a part of the cluster and says every ten seconds that it lives. The
    # claim of a killed driver lapses after this time, by default three minutes: until then the
    # next run has only what is left.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
}
"""Environment defaults for Ray 2.60, which reads them at `import ray`. Values that the user has set
stay."""

RAY_NAMESPACE: Final = "phrasebox"
"""The namespace of a Ray that a run has started itself, on this machine."""

AT_MOST_INLINE: Final = 100
"""The most samples that `auto` runs in one process on more than two cores.

On 2 cores of an AMD EPYC 100 scenes with `demo` take 12 s in one process and 27 s on Ray, where
the first rows come after 16 s.
"""

AT_MOST_INLINE_ON_TWO_CORES: Final = 1000
"""The same on one core or two, which one process keeps busy: 400 scenes take 13 s, and 25 s on
Ray."""

CPU_MODEL_WORKERS: Final = 8
"""Default maximum of model workers on a machine without GPUs; each holds a copy of the model and
shares the cores."""


def cores_here() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ray_fault() -> str | None:
    """Return why no run can start Ray in this environment; None if one can. Ray is not imported."""
    try:
        installed = version("ray")
    except PackageNotFoundError:
        return "Ray is not installed"
    if installed.startswith(f"{RAY_VERSION}."):
        return None
    return f"Ray {installed} is installed, and phrasebox needs {RAY_VERSION}"


def check_engine(engine: EngineConfig) -> None:
    """Raise ConfigError if settings mean Ray, and no run can start it here."""
    if (engine.kind == "ray" or _means_ray(engine)) and (fault := ray_fault()) is not None:
        raise ConfigError(
            f"{fault}: {HOW_TO_INSTALL_RAY}, or set engine.kind=inline and no other key of engine, for one process",
            key="engine.kind",
        )


def choose_engine(engine: EngineConfig, samples: int | None) -> EngineConfig:
    """Return the settings with a decision for `engine.kind=auto`; other kinds stay.

    Settings with another key mean Ray. Where Ray cannot start, the decision is one process for any input.

    samples: Number of samples of the input. None, if only reading will show it, means a large input.

    >>> from phrasebox.pipeline.config.run_config import EngineConfig
    >>> [choose_engine(EngineConfig(), samples).kind for samples in (50, 50_000, None)]
    ['inline', 'ray', 'ray']
    """
    if engine.kind != "auto":
        return engine
    is_inline = not _means_ray(engine) and (_is_small(samples) or ray_fault() is not None)
    return engine.model_copy(update={"kind": "inline" if is_inline else "ray"})


def engine_in_words(settings: EngineConfig, chosen: EngineConfig, samples: int | None) -> str:
    """Return the engine for people, and why it is one process where Ray was better.

    settings: Those of the user, before `choose_engine`.
    """
    if chosen.kind == "ray":
        return "several processes (Ray)"
    fault = None if settings.kind == "inline" or _is_small(samples) else ray_fault()
    return (
        "one process"
        if fault is None
        else f"one process, because {fault}: {HOW_TO_INSTALL_RAY}, for several"
    )


def _means_ray(engine: EngineConfig) -> bool:
    """Whether a key is set that is about Ray."""
    return engine.kind != "inline" and engine != type(engine)(kind=engine.kind)


def _is_small(samples: int | None) -> bool:
    """Whether one process is as fast as several."""
    most = AT_MOST_INLINE if cores_here() > 2 else AT_MOST_INLINE_ON_TWO_CORES
    return samples is not None and samples <= most
