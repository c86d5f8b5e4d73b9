"""The cluster around a run: starting or joining Ray, checks of its nodes, and how many model workers fit."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import phrasebox
from phrasebox.pipeline.config.run_config import EngineConfig
from phrasebox.pipeline.run.engines import CPU_MODEL_WORKERS, RAY_NAMESPACE, cores_here
from phrasebox.pipeline.run.engines.ray_code import (
    CodeVersion,
    lack_of_package,
    make_code_probe,
    reject_other_code,
)
from phrasebox.pipeline.terminal import keeping_handlers
from phrasebox.stages.contract.errors import ConfigError, PhraseboxError, ResourceError
from phrasebox.stages.contract.stage import Device
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import AnyPath, cannot_write, is_about_writing

OTHER_WORKERS: Final = 6
"""Logical CPUs of a Ray that is started here, beside the model's: one each for reading, preparing,
finishing and writing, and two to spare."""

GPU_THREADS: Final = 2
"""The most CPU threads of a model worker on a GPU. One launches what the GPU computes; others need
the cores."""

CAPTIONS_A_GPU: Final = 32
"""The most workers for captions and images that feed a GPU. An H100 takes some 5,000 images a
second by estimate, and such a worker makes 100 to 250, with five captions an image or one
(docs/benchmarks/speed.md)."""

CAPTION_SHARE: Final = 0.75
"""The share of the CPUs beside the model's that captions and images take at most where GPUs
compute. Reading, regions and writing take a quarter of the host's work, and would otherwise
wait for CPUs."""

CONNECT_SECONDS: Final = 10

_RESUMES: Final = "Finished rows are kept; the same command resumes from there"

_SHORTAGES: Final = {
    exceptions.OutOfDiskError: "the disk that holds Ray's temporary files is full: make room there",
    exceptions.OutOfMemoryError: "a node's memory is full, and Ray had to end a worker again and again: lower "
    "engine.cpu_workers or engine.explain_workers, or model.batch_size",
    exceptions.ObjectStoreFullError: "Ray's object store is full: raise engine.object_store_bytes",
}
"""Error of Ray -> what is short, and what to do."""


@contextlib.contextmanager
def connected(
    engine: EngineConfig, output: AnyPath, packages: Sequence[str] = (), models: int = 1
) -> Iterator[int | None]:
    """Start or join Ray within the block, unless it is connected already, and translate its errors to ours.

    packages: What `engine.ship_code` sends.
    models: The number of models that have workers, with the segmenter two.

    Yields:
        This machine's cores if Ray was started here, with more logical CPUs than that; None on
        a cluster.

    Raises:
        ConfigError: The cluster cannot be reached.
        ResourceError: Ray does not start on this machine, or the surroundings no longer allow
            the run.
        OutputError: The dataset's folder `output`, the only place that workers write to, cannot
            be written.
    """
    started_here = not ray.is_initialized()
    if started_here:
        _start(engine, packages, models)
    try:
        yield cores_here() if started_here and engine.address is None else None
    except (exceptions.RayError, OSError) as error:
        raise translate_error(error, output) from error
    finally:
        if started_here:
            ray.shutdown()


def _start(engine: EngineConfig, packages: Sequence[str], models: int) -> None:
    options: Json = {"logging_level": logging.ERROR, "log_to_driver": False}
    if engine.address is None:
        workers = models * (engine.explain_worker_bounds[1] or min(cores_here(), CPU_MODEL_WORKERS))
        options |= {
            "address": "local",  # without it Ray would join a cluster that happens to run on this machine
            "namespace": RAY_NAMESPACE,
            "num_cpus": max(cores_here(), workers + OTHER_WORKERS),
            "include_dashboard": False,
            "object_store_memory": engine.object_store_bytes,
            "resources": {name: share * workers for name, share in engine.model_resources.items()},
        }
    else:
        _reject_unreachable(engine.address)
        options["address"] = engine.address
    if engine.ship_code:
        options["runtime_env"] = {"py_modules": [import_module(name) for name in packages]}
    try:
        with _silent_stderr(), keeping_handlers(), contextlib.chdir(_neutral_folder()):
            ray.init(**options)
    except (OSError, ValueError, exceptions.AuthenticationError) as error:
        if engine.address is None:
            raise ResourceError(f"Ray does not start on this machine: {error}") from error
        message = f"cannot reach a Ray cluster at {engine.address!r}"
        if isinstance(error, ValueError):
            raise ConfigError(f"{message}: {error}", key="engine.address") from error
        # Ray rejects a driver without the token as if no cluster were there.
        raise ConfigError(
            f"{message}. If it has a token, which is Ray's default where there is a file ~/.ray/auth_token, set "
            "RAY_AUTH_MODE=token, and the cluster's token in that file or in RAY_AUTH_TOKEN",
            key="engine.address",
        ) from error


def _reject_unreachable(address: str) -> None:
    """Raise ConfigError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", or for Ray to judge
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"cannot reach a Ray cluster at {address!r}: {error}", key="engine.address"
        ) from error


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Redirect file descriptor 2: Ray's C++ side writes a line there that RAY_BACKEND_LOG_LEVEL is set.

    Errors arrive as exceptions.
    """
    descriptor = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _neutral_folder() -> Path:
    """A folder to start Ray in, since Ray puts the driver's folder in front of its workers' import path.

    A module there would take the place of a library's. The folder is that of our package if it
    runs from a checkout, else one without packages.
    """
    root = Path(phrasebox.__path__[0]).parent
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return Path(sysconfig.get_path("data")) if root in installed else root


def translate_error(error: Exception, output: AnyPath) -> Exception:
    """Translate an error that Ray raised in the driver to an error of ours with advice; others stay as they are.

    `output` is the dataset's folder, the only place that workers write to.
    """
    chain = _chain(error)
    for link in chain:
        if isinstance(link, PhraseboxError) and not isinstance(link, exceptions.RayError):
            # Ray Data appends its advice on retries to the message, in lines of its own.
            return type(link)(link.args[0].partition("\nFailed to ")[0], key=link.key)
    for link in chain:
        is_about_code = isinstance(link, (ImportError, exceptions.RaySystemError))
        # Of a node that joined after the others were checked.
        if is_about_code and (mismatch := lack_of_package("a worker", str(link))) is not None:
            return mismatch
        for kind, advice in _SHORTAGES.items():
            if isinstance(link, kind):
                return ResourceError(f"{advice}. {_RESUMES}")
        if (
            isinstance(link, OSError)
            and not isinstance(link, exceptions.RayError)
            and is_about_writing(output, link)
        ):
            return cannot_write(output, link)
    message = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(
        error, (exceptions.ActorDiedError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)
    ):
        return ResourceError(f"workers died one after the other: {message}. {_RESUMES}")
    if isinstance(error, (exceptions.ObjectLostError, exceptions.RaySystemError)):
        return ResourceError(
            f"the Ray cluster lost data that it could not make again: {message}. {_RESUMES}"
        )
    return error


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, each of them once."""
    links = [error]
    for link in links:  # which grows meanwhile
        causes = (getattr(link, "cause", None), link.__cause__)
        links += [cause for cause in causes if isinstance(cause, BaseException) and cause not in links]
    return links


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCheck:
    """Questions to every node before any work: its code, and whether it sees the local places of a configuration.

    Nodes that join later are checked when their actors start.

    Attributes:
        code: The driver's code.
        places: The places by key of the configuration.
        versions: A node's name, and the reference of its code.
        missing: A node's name, and the reference of the keys whose places it does not see.
    """

    code: CodeVersion
    places: Mapping[str, str]
    versions: Sequence[tuple[str, Any]]
    missing: Sequence[tuple[str, Any]]

    @classmethod
    def start(cls, code: CodeVersion, places: Mapping[str, str]) -> NodeCheck:
        """Ask the nodes, and do not wait for their answers."""
        versions = _ask_nodes(make_code_probe(code.packages))
        return cls(code=code, places=places, versions=versions, missing=_ask_nodes(_find_missing, places))

    def finish(self) -> None:
        """Wait for the answers. Raise WorkerCodeMismatch or ConfigError."""
        for node, reference in self.versions:
            answer = CodeVersion(packages=self.code.packages, **ray.get(reference))
            reject_other_code(self.code, answer, where=f"the worker on {node}")
        for node, reference in self.missing:
            for key in ray.get(reference):
                raise ConfigError(
                    f"the worker on {node} does not see {self.places[key]}; all nodes need to share it",
                    key=key,
                )


def _ask_nodes(question: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """Call a function on every node; return the nodes' names and references of the answers."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ask = ray.remote(num_cpus=0)(question)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes]
    return [
        (node["NodeManagerHostname"], ask.options(scheduling_strategy=place).remote(*arguments))
        for node, place in zip(nodes, places, strict=True)
    ]


def _find_missing(places: Mapping[str, str]) -> list[str]:
    return [key for key, place in places.items() if not os.path.exists(place)]


FEWEST_CALLS: Final = 8
"""Calls of the input for each caption worker that starts at once: a start takes seconds of a core, which few calls are
not worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The numbers of a run's workers, and the resources of each model worker.

    Attributes:
        min_workers: Model workers at the start.
        max_workers: Model workers at most.
        gpus: The GPU share of a model worker; 0 keeps it on the CPU.
        threads: CPU threads of a model worker.
        captions: The most workers that parse captions and decode images.
        resources: Ray's custom resources that a model worker holds.
        note: Advice for the user about the choice, else empty.
    """

    min_workers: int
    max_workers: int
    gpus: float
    threads: int
    captions: int
    resources: Mapping[str, float]
    note: str = ""

    @property
    def device(self) -> Device:
        """Return the device that the model runs on."""
        return "cuda" if self.gpus > 0 else "cpu"

    def first_captions(self, samples: int | None, call: int) -> int:
        """Return how many caption workers start at once: one, and more where GPUs would wait for a large input.

        Ray Data adds one at a time to a pool that is busy.

        Args:
            samples: Of the input; None if only reading will show them, which means a large input.
            call: Samples that a worker takes at once.
        """
        if self.device == "cpu":  # the model takes far longer than the captions
            return 1
        if samples is None:
            return self.captions
        return max(1, min(self.captions, samples // (FEWEST_CALLS * call)))


def choose_pools(
    engine: EngineConfig,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None,
    nodes: Sequence[Mapping[str, Any]],
    cores: int | None = None,
    models: int = 1,
) -> Pools:
    """Choose the sizes of the pools of workers.

    Without GPUs a model worker per core is best, because many images on one thread each are
    faster than one image on many threads, up to `CPU_MODEL_WORKERS` a node. On this machine
    half of them start at once: a worker takes seconds of a core to start, and the first images
    would wait. Ray Data starts the second half when more batches wait than the first workers
    have in hand, which does not happen with a small input.

    Args:
        engine: The user's settings.
        device: `model.device`.
        threads: `model.threads`.
        nodes: `ray.nodes()`.
        cores: See `connected`.
        models: The number of models that have workers, with the segmenter two; they share GPUs
            and CPUs.

    Raises:
        ConfigError: The settings contradict each other.
        ResourceError: The settings require GPUs, and this machine has none.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cluster_gpus = sum(node.get("GPU", 0.0) for node in alive)
    cpus = int(sum(node.get("CPU", 0.0) for node in alive))
    gpus = engine.gpus_per_worker
    if gpus is None:
        gpus = 0.0 if device == "cpu" else min(1.0 / models, cluster_gpus)
    if device == "cuda" and engine.gpus_per_worker == 0:
        raise ConfigError(
            "0 leaves model workers without a GPU, but model.device is cuda", key="engine.gpus_per_worker"
        )
    if gpus > 0 and not cluster_gpus and engine.address is None:
        raise ResourceError(f"{gpus:g}, but Ray finds no GPU on this machine", key="engine.gpus_per_worker")
    workers = _default_workers(alive, gpus, cores, models)
    fewest, most = engine.explain_worker_bounds
    most = most or workers
    other_cpus = cpus - most * models
    captions = other_cpus - 4
    if gpus > 0:
        captions_of_gpus = CAPTIONS_A_GPU * math.ceil(most * models * gpus)
        captions = min(captions, int(other_cpus * CAPTION_SHARE), captions_of_gpus)
    largest_node = max((int(node.get("CPU", 0)) for node in alive), default=1)
    most_threads = GPU_THREADS if gpus > 0 else cores or largest_node
    return Pools(
        min_workers=fewest or (workers if gpus > 0 or cores is None else -(-workers // 2)),
        max_workers=most,
        gpus=gpus,
        threads=threads or max(1, min(most_threads, (cores or cpus) // most)),
        captions=engine.cpu_workers or max(1, captions),
        resources=engine.model_resources,
        note=_advice(gpus, cluster_gpus, device, engine.address),
    )


def _default_workers(
    nodes: Sequence[Mapping[str, float]], gpus: float, cores: int | None, models: int
) -> int:
    """The workers of a model that fit on nodes with these resources; `models` of such workers share the nodes."""
    if gpus > 0:
        return max(1, sum(_fitting(node.get("GPU", 0.0), gpus) for node in nodes) // models)
    if cores is not None:
        return min(cores, CPU_MODEL_WORKERS)
    cpus = int(sum(node.get("CPU", 0.0) for node in nodes))
    workers = sum(min(int(node.get("CPU", 0)), CPU_MODEL_WORKERS) for node in nodes)
    return max(1, min(workers, cpus - OTHER_WORKERS) // models)


def _advice(gpus: float, cluster_gpus: float, device: str, address: str | None) -> str:
    """Return advice on GPUs that a run waits for or leaves out; "" if there is none."""
    if gpus > 0 and not cluster_gpus:
        return (
            "the cluster has no GPU up now: model workers wait for nodes with GPUs (engine.gpus_per_worker)"
        )
    if gpus > 0 or device != "auto" or cluster_gpus or address is None:
        return ""
    return "the model runs on CPUs: the cluster has no GPU up now; engine.gpus_per_worker=1 waits for one"


def _fitting(gpus: float, share: float) -> int:
    """The workers with a share that fit on a node: Ray gives none of them parts of two GPUs, or GPUs of two nodes."""
    if share >= 1:
        return int(gpus / share)
    return int(gpus) * int(1 / share) + int(gpus % 1 / share)
