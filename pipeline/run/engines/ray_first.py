"""The worker of the first images, whose process loads the libraries of the model while the driver loads them, too."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

from phrasebox.pipeline.run.engines import cores_here
from phrasebox.pipeline.run.engines.ray_code import CodeVersion, reject_other_code
from phrasebox.pipeline.run.engines.ray_exit import leave_at_exit
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.stages.contract.errors import DeviceFault
from phrasebox.stages.contract.stage import Stage

LIBRARIES: Final = (
    "phrasebox.pipeline.run.warm_up",
    "phrasebox.pipeline.run.engines.ray_workers",
    "phrasebox.stages.model.load",
    "spacy",
)
"""Modules that the look at the first images, or its rows, would wait for. None is imported with this one, for which
the driver waits before Ray starts the process."""


class FirstImagesWorker:
    """Computes what the first images decide, and writes their rows, in a process of its own.

    It has at most as many threads as the node has cores, and works before there are other workers.

    Args:
        environment: See `StageWorker`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        leave_at_exit()
        threads = min(int(environment["OMP_NUM_THREADS"]), cores_here())
        os.environ.update({**environment, "OMP_NUM_THREADS": str(threads)})
        gc.disable()  # it would search the modules again and again, and find nothing
        # What is missing on a node is said where nodes are asked, and by `compute`.
        with contextlib.suppress(ImportError):
            for name in LIBRARIES:
                import_module(name)
        gc.freeze()
        gc.enable()

    def compute(self, work: Callable[..., Any], steps: Any, ledger: Any, code: CodeVersion) -> Any:
        """Call `work` with the steps, whose first stages are set up, and a function that reports its progress.

        After a fault of its GPU the process dies as a `ModelWorker` does, and Ray repeats the call.
        """
        reject_other_code(code)

        def on_progress(done: int, total: int) -> None:
            ledger.finish.remote("", [("look", (done, total))])

        try:
            with set_up(steps.first_stages):
                return work(steps, on_progress)
        except DeviceFault:
            os._exit(1)

    def write(self, stages: Sequence[Stage], *arguments: Any) -> list[Any]:
        """Return the shards' entries in the journal, see `write_shards`."""
        from phrasebox.pipeline.run.engines.ray_workers import write_shards  # noqa: PLC0415  see `LIBRARIES`

        return list(write_shards(stages, *arguments))
