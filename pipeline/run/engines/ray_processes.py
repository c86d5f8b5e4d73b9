"""Ray's processes of a run that start before its stages are known, so that the driver and they load libraries at once.

`ray_data` runs the stages in them. It is not imported here: Ray starts while less is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.engines import CPU_MODEL_WORKERS
from phrasebox.pipeline.run.engines.ray_cluster import NodeCheck, Pools, choose_pools, connected
from phrasebox.pipeline.run.engines.ray_code import CodeVersion, code_here
from phrasebox.pipeline.run.engines.ray_first import FirstImagesWorker
from phrasebox.pipeline.run.engines.ray_ledger import start_ledger
from phrasebox.pipeline.run.steps import packages_of
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import AnyPath, absolute, is_local
from phrasebox.stages.read import Piece

MOST_RESTARTS: Final = 20
"""How often the worker of the first images is started again. Covers nodes that leave."""


@dataclass(slots=True, kw_only=True)
class RayProcesses:
    """The processes, and what they were started with.

    Attributes:
        pools: The numbers of workers.
        ledger: The handle of the `Ledger` that workers report to.
        code: The driver's code.
        nodes: The check of the nodes, which is under way.
        first: The handle of the `FirstImagesWorker`; None where there is none.
    """

    pools: Pools
    ledger: Any
    code: CodeVersion
    nodes: NodeCheck
    first: Any = None

    def take_first(self) -> Any:
        """Return the handle of the worker of the first images, which is started if there is none."""
        if self.first is None:
            actor = ray.remote(max_restarts=MOST_RESTARTS, max_task_retries=-1, **resources_of(self.pools))(
                FirstImagesWorker
            )
            self.first = actor.remote(environment_of(self.pools, CPU_MODEL_WORKERS))
        return self.first

    def end_first(self) -> None:
        """End that worker, so that others get its CPU and its GPU's memory."""
        if self.first is not None:
            ray.kill(self.first)
            self.first = None


@contextmanager
def start(
    config: RunConfig, pieces: Sequence[Piece], output: AnyPath, *, is_new: bool
) -> Iterator[RayProcesses]:
    """Start or join Ray for the block.

    Args:
        config: The configuration, with the engine that was chosen.
        pieces: The pieces of the input.
        output: The dataset's folder.
        is_new: Whether the dataset has no rows, so that its first images have to be looked at.

    Raises:
        PhraseboxError: As a worker raised it.
        ConfigError: The settings of the engine contradict each other, or the cluster cannot be reached.
        ResourceError, OutputError: The surroundings do not allow the run.
    """
    models = 2 if config.regions.refine == "sam" else 1
    packages = packages_of(config)
    with connected(config.engine, output, packages, models) as cores:
        ledger = start_ledger()
        model = config.model
        pools = choose_pools(config.engine, model.device, model.threads, ray.nodes(), cores, models)
        code = code_here(packages)
        nodes = NodeCheck.start(code, _shared_places(config, pieces, output))
        processes = RayProcesses(pools=pools, ledger=ledger, code=code, nodes=nodes)
        if is_new and config.source.makes_heat_maps and config.regions.calibration != "none":
            processes.take_first()
        yield processes


def resources_of(pools: Pools) -> Json:
    """Return the resources of a model worker, as arguments of Ray."""
    return {"num_cpus": 1, "num_gpus": pools.gpus, "resources": pools.resources or None}


def environment_of(pools: Pools, threads: int) -> dict[str, str]:
    """Return variables for the libraries of a model worker."""
    # Ray gives a worker as many threads as CPUs it holds, here one. torch.set_num_threads would
    # not help: Ray Data calls an actor from a thread of its own, and OpenMP's setting belongs
    # to the thread that made it.
    environment = {"OMP_NUM_THREADS": str(threads)}
    if pools.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # else all workers of a node would take its first GPU
    return environment


def _shared_places(config: RunConfig, pieces: Sequence[Piece], output: AnyPath) -> Mapping[str, str]:
    """The local places that all nodes have to see, by configuration key; all nodes see URLs."""
    places = {"output.path": str(output)}
    if pieces:
        places["input.path"] = pieces[0].url
    for name in ("image_root", "phrases"):
        place = getattr(config.input, name, None)  # not every kind of input has an image root
        if place is not None:
            places[f"input.{name}"] = absolute(place)
    return {key: place for key, place in places.items() if is_local(place)}
