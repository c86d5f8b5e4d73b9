"""A run on Ray whose model worker computes on the simulated device.

    python -c "from tests.cuda.on_ray import main; main('run.json')"

The file has the configuration, and with `fails` the path of a file: the worker that finds it removes it, and its device
is broken from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.decisions import Run, resolve
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.records import Record
from phrasebox.stages.explain.stage import ExplainStage
from tests.build.files import read_json
from tests.cuda.simulated import SimulatedCuda, simulated_cuda
from tests.pipeline.output.light_runs import resolved_by


@cache
def device_of_this_process() -> SimulatedCuda:
    return SimulatedCuda()


class SimulatedStage(ExplainStage):
    """The stage, which finds a CUDA device whenever it is called, in whatever thread."""

    fails: str | None = None

    def setup(self) -> None:
        with simulated_cuda(device_of_this_process()):
            super().setup()

    def process(self, batch: Sequence[Record]) -> list[Record]:
        with simulated_cuda(device_of_this_process()) as cuda:
            if self.fails and Path(self.fails).exists():
                Path(self.fails).unlink()
                cuda.broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            return super().process(batch)

    def computing(self, **settings: str) -> ExplainStage:
        return simulated(super().computing(**settings), self.fails)


def simulated(stage: ExplainStage, fails: str | None) -> SimulatedStage:
    made = SimulatedStage(stage.config, None, stage.presence)
    made.fails = fails
    return made


def main(path: str) -> None:
    given = read_json(Path(path))
    config = RunConfig.model_validate(given["config"])

    def resolver(*arguments: Any) -> Run:
        resolved = resolve(*arguments)
        stage = simulated(resolved.steps.model_stage, given.get("fails"))
        return replace(resolved, steps=replace(resolved.steps, model_stage=stage))

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    with resolved_by(resolver):
        run(config, Console(width=200))
