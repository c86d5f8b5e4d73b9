"""The graph on Ray Data. Only the modules beside this one import ray.

    read tasks -> [phrases, prepare] actors on CPUs -> [explain] actors on GPUs -> [regions] tasks -> write

Batches travel as Arrow tables (`stages.contract.schema`). Which rows are done stands in Ray Data's checkpoint: it
holds the ids of written rows and is committed together with each file (`pipeline.output.checkpoint`). Actors and
tasks are restarted and repeated without limit, as is Ray Data's default: on machines that come and go a limit would
only be a way to lose a long run. What would otherwise be repeated for ever, a sample that kills its worker, ends as a
row with an error (`ray_workers`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import ray
import ray.data
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import IdColumnCheckpointManager
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import RayEngine, RunConfig
from pipeline.engines import same_code
from pipeline.engines.batches import batch_rows
from pipeline.engines.ray_claims import drop_claims_of_dead_drivers
from pipeline.engines.ray_faults import readable
from pipeline.engines.ray_ledger import start_ledger, watching
from pipeline.engines.ray_workers import CaptionWorker, ModelWorker, ShardSource, count, finish
from pipeline.engines.same_code import Code
from pipeline.graph import Graph
from pipeline.output.checkpoint import noted_ids
from pipeline.output.folder import DatasetFolder
from pipeline.stop import keeping_handlers
from pipeline.summary import Report
from stages.contract.errors import ConfigError, ResourceError
from stages.read import Shard, plan_shards
from stages.storage import AnyPath, ObjectPath, absolute, is_local
from stages.write.parquet import PARQUET_SETTINGS

BLOCK_BYTES: Final = 8 * 1024 * 1024
"""Size at which Ray Data hands a block on: small enough that all stages work at once on small inputs."""

CPU_MODEL_WORKERS: Final = 8
"""Without GPUs at most so many model workers by default: each loads the model. They share the cores as threads."""

OTHER_WORKERS: Final = 6
"""Logical CPUs beside the model's: one each for reading, preparing, finishing and writing, and two to spare."""

CONNECT_SECONDS: Final = 10

INIT_DEATHS: Final = 20
"""Actors of a stage that may die one after the other while they start, say of a node that leaves; Ray Data's own
number is none. What our stages refuse is raised from the first batch, at once."""


def run(graph: Graph, folder: DatasetFolder, config: RunConfig, report: Report, show: Callable[[Report], None]) -> None:
    """See `pipeline.engines.Engine`.

    Raises the PhraseboxError of a worker as it is, ResourceError and OutputError for what the surroundings no longer
    allow, WorkerCodeMismatch; faults of the program as Ray reports them.
    """
    if not isinstance(config.engine, RayEngine):
        raise TypeError(f"expected a ray engine, got {config.engine!r}")
    shards = plan_shards(graph.reader)
    counts = [shard.samples for shard in shards]
    if None not in counts:
        report.expected = sum(count for count in counts if count is not None)
    started_here = not ray.is_initialized()
    if started_here:
        _start(config.engine)
    try:
        code = same_code.code_here()
        _shake_hands(code, _places(config, folder, shards))
        if shards:
            drop_claims_of_dead_drivers()
            ledger = start_ledger()
            with watching(ledger, report, show, len(shards)):
                _execute(graph, shards, folder, config, config.engine, ledger, code)
            _count_again(graph, shards, report)
    except (ray.exceptions.RayError, OSError) as error:
        raise readable(error, folder.path) from error
    finally:
        if started_here:
            ray.shutdown()


def _start(engine: RayEngine) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's C++ side warns on the terminal about things that are as they should be.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What Ray keeps of past tasks is for its dashboard, which is not started here, and grows for 100,000 tasks.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if engine.address is None:
        workers = engine.most_explain_workers or _cpu_model_workers()
        options |= {
            "address": "local",  # without it Ray would join a cluster that happens to run on this machine
            "num_cpus": engine.num_cpus or max(_cores(), workers + OTHER_WORKERS),
            "include_dashboard": False,
            "object_store_memory": engine.object_store_bytes,
            "resources": {name: share * workers for name, share in engine.model_resources.items()},
        }
    else:
        _refuse_unreachable(engine.address)
        options["address"] = engine.address
    if engine.ship_code:
        options["runtime_env"] = {"py_modules": same_code.packages()}
    try:
        with _silent_stderr(), keeping_handlers(), contextlib.chdir(same_code.neutral_folder()):
            ray.init(**options)
    except (OSError, ValueError, ray.exceptions.AuthenticationError) as error:
        if engine.address is None:
            raise ResourceError(f"Ray does not start on this machine: {error}") from error
        what = f"engine.address: cannot reach a Ray cluster at {engine.address!r}"
        if isinstance(error, ValueError):
            raise ConfigError(f"{what}: {error}") from error
        # Ray refuses a driver without the token as if nobody were there.
        raise ConfigError(
            f"{what}. If it has a token, which is Ray's default where there is a file ~/.ray/auth_token, set "
            "RAY_AUTH_MODE=token, and the cluster's token in that file or in RAY_AUTH_TOKEN"
        ) from error


def _refuse_unreachable(address: str) -> None:
    """Raise ConfigError where nobody listens: Ray itself would knock for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", or for Ray to judge
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"engine.address: cannot reach a Ray cluster at {address!r}: {error}") from error


def _shake_hands(code: Code, places: Mapping[str, str]) -> None:
    """Ask every node, before any work, for its code and whether it sees the places.

    Nodes that join later answer for their code when their actors start.

    Raises WorkerCodeMismatch or ConfigError.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node, found in _asked(nodes, same_code.looker()):
        same_code.refuse_other_code(code, Code(**found), where=f"the worker on {node}")
    for node, missing in _asked(nodes, _not_seen, places):
        for key in missing:
            raise ConfigError(f"{key}: the worker on {node} does not see {places[key]}; all nodes need to share it")


def _places(config: RunConfig, folder: DatasetFolder, shards: Sequence[Shard]) -> dict[str, str]:
    """What all nodes have to see, by key; URLs are seen by all."""
    places = {"output.path": str(folder.path)}
    if shards:
        places["input.path"] = shards[0].url
    image_root = getattr(config.input, "image_root", None)  # not every kind of input has one
    if image_root is not None:
        places["input.image_root"] = absolute(image_root)
    return {key: place for key, place in places.items() if is_local(place)}


def _asked(nodes: Sequence[dict[str, Any]], question: Callable[..., Any], *about: Any) -> list[tuple[str, Any]]:
    """Every node's name and answer."""
    ask = ray.remote(num_cpus=0)(question)
    where = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes]
    answers = ray.get([ask.options(scheduling_strategy=place).remote(*about) for place in where])
    return [(node["NodeManagerHostname"], answer) for node, answer in zip(nodes, answers, strict=True)]


def _not_seen(places: Mapping[str, str]) -> list[str]:
    return [key for key, place in places.items() if not os.path.exists(place)]


def _count_again(graph: Graph, shards: Sequence[Shard], report: Report) -> None:
    """Count the shards whose counts were lost with a worker."""
    missing = [number for number in range(len(shards)) if number not in report.reads]
    counted = ray.get([ray.remote(count).remote(graph.reader, shards[number]) for number in missing])
    for number, (samples, skipped) in zip(missing, counted, strict=True):
        report.read(number, samples, skipped)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep Ray's C++ side, which greets on file descriptor 2, from the terminal; errors arrive as exceptions."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _execute(
    graph: Graph,
    shards: Sequence[Shard],
    folder: DatasetFolder,
    config: RunConfig,
    engine: RayEngine,
    ledger: Any,
    code: Code,
) -> None:
    context = DataContext.get_current().copy()
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=_name(folder.checkpoint),
        delete_checkpoint_on_success=False,
        override_filesystem=_filesystem(folder.checkpoint),
        checkpoint_manager_cls=_OnlyWrites,
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.raise_original_map_exception = True  # Ray Data's own would carry it as text only
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, once is enough
    with DataContext.current(context), warnings.catch_warnings():
        # A small input has fewer batches than there are model workers, and nobody needs to do anything about it.
        warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
        ids = noted_ids(folder.checkpoint)
        source = ShardSource(graph.reader, shards, ledger, ray.put(ids) if len(ids) else None)
        # As many blocks as tasks: Ray Data would cut a small input into 200 blocks of a few rows, and each leaves
        # the model a batch that is mostly padding.
        rows = ray.data.read_datasource(source, override_num_blocks=source.tasks)
        (fewest, most), gpus = _model_workers(engine, config)
        batch = batch_rows(graph.model, "cuda" if gpus > 0 else "cpu")
        cpu_workers = engine.cpu_workers or max(1, int(ray.cluster_resources().get("CPU", 2)) - most - 4)
        rows = rows.map_batches(
            CaptionWorker,
            fn_constructor_args=(graph.before, ledger, code),
            batch_size=batch,
            batch_format="pyarrow",
            concurrency=(1, cpu_workers),
            num_cpus=1,
        )
        # Without it blocks would be cut by their bytes, and each would leave the model a remainder to fill up.
        rows = rows.repartition(target_num_rows_per_block=batch, strict=True)
        rows = rows.map_batches(
            ModelWorker,
            fn_constructor_args=((graph.model,), ledger, code),
            batch_size=batch,
            batch_format="pyarrow",
            concurrency=(fewest, most),
            num_cpus=1,
            num_gpus=gpus,
            resources=engine.model_resources or None,
            # Ray gives a worker as many threads as CPUs it holds, here one. Set from outside, since Ray Data calls
            # an actor from a thread of its own, and OpenMP's setting belongs to the thread that made it.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(_threads(config, most))}},
        )
        rows = rows.map_batches(
            functools.partial(finish, graph.after, ledger, embed_images=config.output.embed_images),
            batch_size=batch,
            batch_format="pyarrow",
        )
        rows.write_parquet(
            _name(folder.data),
            filesystem=_filesystem(folder.data),
            min_rows_per_file=config.output.rows_per_file,
            max_rows_per_file=config.output.rows_per_file,
            **PARQUET_SETTINGS,
        )
    folder.drop_uncommitted()


class _OnlyWrites(IdColumnCheckpointManager):  # type: ignore[misc]  # ray is untyped
    """Ray Data's checkpoint without its filter of rows that are done.

    The filter is a pool of actors behind the read tasks: it gets every row as a table only to drop it, holds CPUs and
    a gigabyte, and can hang on a small machine. The read tasks leave these rows out themselves.
    """

    def load_checkpoint(self, *_: Any, **__: Any) -> tuple[None, int]:
        """Nothing to filter by."""
        return None, 0


def _name(path: AnyPath) -> str:
    """As its filesystem calls it."""
    return str(path.key) if isinstance(path, ObjectPath) else str(path)


def _filesystem(path: AnyPath) -> Any:
    """pyarrow's filesystem of a place in object storage; it takes endpoint and region along to the workers."""
    return path.filesystem.fs if isinstance(path, ObjectPath) else None


def _model_workers(engine: RayEngine, config: RunConfig) -> tuple[tuple[int, int], float]:
    """The fewest and most model workers, and the GPU share of each."""
    resources = ray.cluster_resources()
    available = 0.0 if config.model.device == "cpu" else float(resources.get("GPU", 0))
    gpus = engine.gpus_per_worker if engine.gpus_per_worker is not None else min(1.0, available)
    workers = max(1, int(available / gpus)) if gpus > 0 else _cpu_model_workers()
    return (engine.fewest_explain_workers or workers, engine.most_explain_workers or workers), gpus


def _cpu_model_workers() -> int:
    """A worker a core: many images one thread each are faster than one image on many threads."""
    return min(_cores(), CPU_MODEL_WORKERS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(config: RunConfig, workers: int) -> int:
    """CPU threads of a model worker."""
    return config.model.threads or max(1, _cores() // workers)
