"""The graph on Ray Data. The only module that imports ray.

    read tasks -> [phrases, prepare] actors on CPUs -> [explain] actors on GPUs -> [regions] tasks -> write

Batches travel as Arrow tables (`stages.schema`). Which rows are done is Ray Data's business: its
checkpoint holds the ids of written rows and is committed together with each file.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import ray
import ray.data
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import Datasource, ReadTask

from pipeline.config import RayEngine, RunConfig
from pipeline.engines.batches import BATCH_ROWS, run_stages
from pipeline.graph import Graph
from pipeline.output import DatasetFolder
from pipeline.summary import Report
from stages.base import Stage
from stages.errors import ConfigError, PhraseboxError
from stages.read import Reader, Shard, Skipped
from stages.records import Record
from stages.schema import RECORD_SCHEMA, records_to_rows, records_to_table, table_to_records
from stages.write.parquet import PARQUET_SETTINGS

BLOCK_BYTES = 8 * 1024 * 1024
"""Size at which Ray Data hands a block on: small enough that all stages work at once on small inputs."""

READ_TASKS = 2000
"""At most so many read tasks; each reads several input shards where there are more."""

CPU_MODEL_WORKERS = 8
"""Without GPUs at most so many model workers by default: each loads the model. They share the cores as threads."""

OTHER_WORKERS = 6
"""Logical CPUs beside the model's: one each for reading, preparing, finishing, writing and, in a resumed run,
Ray Data's checkpoint filter, and one to spare. Fewer than these can hang on a small machine."""

SHOW_SECONDS = 0.5

LAST_EVENTS_SECONDS = 30
"""How long the driver waits at the end for the last read tasks' counts."""


def run(graph: Graph, folder: DatasetFolder, config: RunConfig, report: Report, show: Callable[[Report], None]) -> None:
    """See `pipeline.engines.Engine`.

    Raises the PhraseboxError of a worker's `setup` as it is; other faults of workers as Ray reports them.
    """
    if not isinstance(config.engine, RayEngine):
        raise TypeError(f"expected a ray engine, got {config.engine!r}")
    shards = graph.reader.shards()
    counts = [shard.samples for shard in shards]
    if None not in counts:
        report.expected = sum(count for count in counts if count is not None)
    started_here = not ray.is_initialized()
    if started_here:
        _start(config.engine)
    try:
        ledger = ray.remote(num_cpus=0)(_Ledger).remote()
        try:
            with _watching(ledger, report, show, len(shards)):
                if shards:
                    _execute(graph, shards, folder, config, config.engine, ledger)
        except ray.exceptions.RayError as error:
            raise ray.get(ledger.refusal.remote()) or error from error
    finally:
        if started_here:
            ray.shutdown()


def _start(engine: RayEngine) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's C++ side warns on the terminal about things that are as they should be.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if engine.address is None:
        options |= {
            "num_cpus": engine.num_cpus
            or max(_cores(), (engine.explain_workers or _cpu_model_workers()) + OTHER_WORKERS),
            "include_dashboard": False,
            "object_store_memory": engine.object_store_bytes,
        }
    else:
        options["address"] = engine.address
    try:
        with _silent_stderr():
            ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"engine.address: cannot reach a Ray cluster at {engine.address!r}: {error}") from error


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
) -> None:
    context = DataContext.get_current().copy()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(folder.checkpoint), delete_checkpoint_on_success=False
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    # Failed starts of an actor are our own errors (a missing GPU, damaged weights): asking again does not help.
    context.actor_init_retry_on_errors = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, once is enough
    with DataContext.current(context):
        source = ShardSource(graph.reader, shards, ledger)
        # As many blocks as tasks: Ray Data would cut a small input into 200 blocks of a few rows, and each leaves
        # the model a batch that is mostly padding.
        rows = ray.data.read_datasource(source, override_num_blocks=source.tasks)
        workers, gpus = _model_workers(engine, config)
        cpu_workers = engine.cpu_workers or max(1, int(ray.cluster_resources().get("CPU", 2)) - workers - 4)
        rows = rows.map_batches(
            StageWorker,
            fn_constructor_args=(graph.before, ledger),
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
            concurrency=(1, cpu_workers),
            num_cpus=1,
        )
        rows = rows.map_batches(
            StageWorker,
            fn_constructor_args=((graph.model,), ledger),
            batch_size=BATCH_ROWS if gpus == 0 else 4 * BATCH_ROWS,
            batch_format="pyarrow",
            concurrency=workers,
            num_cpus=1,
            num_gpus=gpus,
            # Ray gives a worker as many threads as CPUs it holds, here one. Set from outside, since Ray Data calls
            # an actor from a thread of its own, and OpenMP's setting belongs to the thread that made it.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(_threads(config, workers))}},
        )
        rows = rows.map_batches(
            functools.partial(_finish, graph.after, ledger, embed_images=config.output.embed_images),
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
        )
        rows.write_parquet(
            str(folder.data),
            min_rows_per_file=config.output.rows_per_file,
            max_rows_per_file=config.output.rows_per_file,
            **PARQUET_SETTINGS,
        )


def _model_workers(engine: RayEngine, config: RunConfig) -> tuple[int, float]:
    """How many model workers there are, and the GPU share of each."""
    resources = ray.cluster_resources()
    available = 0.0 if config.model.device == "cpu" else float(resources.get("GPU", 0))
    gpus = engine.gpus_per_worker if engine.gpus_per_worker is not None else min(1.0, available)
    if gpus > 0:
        return engine.explain_workers or max(1, int(available / gpus)), gpus
    return engine.explain_workers or _cpu_model_workers(), 0.0


def _cpu_model_workers() -> int:
    """A worker a core: many images one thread each are faster than one image on many threads."""
    return min(_cores(), CPU_MODEL_WORKERS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(config: RunConfig, workers: int) -> int:
    """CPU threads of a model worker."""
    return config.model.threads or max(1, _cores() // workers)


class StageWorker:
    """Stages in an actor: table in, table out."""

    def __init__(self, stages: Sequence[Stage], ledger: Any) -> None:
        self.stages = stages
        self.told = _Told(ledger)
        try:
            for stage in stages:
                stage.setup()
        except PhraseboxError as error:
            # Ray reports an actor's failed start as text; the ledger keeps the error itself.
            ray.get(ledger.refuse.remote(error))
            raise

    def __call__(self, table: Any) -> Any:
        """Answer a batch."""
        answer = records_to_table(run_stages(self.stages, table_to_records(table), self.told.stage))
        self.told.send()
        return answer


def _finish(stages: Sequence[Stage], ledger: Any, table: Any, *, embed_images: bool) -> Any:
    """The stages after the model, and the rows."""
    told = _Told(ledger)
    for stage in stages:
        stage.setup()
    records = run_stages(stages, table_to_records(table), told.stage)
    told.rows(len(records), sum(record.error is not None for record in records))
    told.send()
    return records_to_rows(records, embed_images=embed_images)


class ShardSource(Datasource):  # type: ignore[misc]  # ray is untyped
    """The input's shards as read tasks that give small rows without images' pixels."""

    def __init__(self, reader: Reader, shards: Sequence[Shard], ledger: Any) -> None:
        super().__init__()
        self._reader = reader
        self._ledger = ledger
        each = -(-len(shards) // READ_TASKS)
        numbered = list(enumerate(shards))
        self._groups = [numbered[i : i + each] for i in range(0, len(numbered), each)]

    @property
    def tasks(self) -> int:
        """Number of read tasks."""
        return len(self._groups)

    def get_name(self) -> str:
        """Name in Ray's dashboard."""
        return "read"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        """One task a shard; several shards a task where there are thousands."""
        return [self._task(group) for group in self._groups]

    def _task(self, group: list[tuple[int, Shard]]) -> Any:
        counts = [shard.samples for _, shard in group]
        known = None if None in counts else sum(count for count in counts if count is not None)
        metadata = BlockMetadata(num_rows=known, size_bytes=None, input_files=None, exec_stats=None)
        return ReadTask(functools.partial(_read, self._reader, group, self._ledger), metadata, schema=RECORD_SCHEMA)


def _read(reader: Reader, group: list[tuple[int, Shard]], ledger: Any) -> Iterator[Any]:
    for number, shard in group:
        counts = [0, Counter[str]()]
        records = _records(reader, shard, counts)
        while batch := list(islice(records, BATCH_ROWS)):
            yield records_to_table(batch)
        ledger.read.remote(number, *counts)


def _records(reader: Reader, shard: Shard, counts: list[Any]) -> Iterator[Record]:
    for item in reader.read(shard):
        if isinstance(item, Skipped):
            counts[1][item.reason] += 1
        else:
            counts[0] += 1
            yield Record.start(item)


class _Ledger:
    """Collects what workers tell, for the driver to fetch. Display only: the shards are counted at the end."""

    def __init__(self) -> None:
        self._events: list[tuple[str, tuple[Any, ...]]] = []
        self._refusal: PhraseboxError | None = None

    def refuse(self, error: PhraseboxError) -> None:
        """A worker cannot start."""
        self._refusal = error

    def refusal(self) -> PhraseboxError | None:
        """Why a worker could not start."""
        return self._refusal

    def read(self, *event: Any) -> None:
        """A shard of the input was read."""
        self._events.append(("read", event))

    def add(self, events: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Stage times and finished rows."""
        self._events.extend(events)

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Everything since the last call."""
        events, self._events = self._events, []
        return events


class _Told:
    """Events of one worker, sent once a batch."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self._events: list[tuple[str, tuple[Any, ...]]] = []

    def stage(self, name: str, records: int, seconds: float) -> None:
        self._events.append(("stage", (name, records, seconds)))

    def rows(self, done: int, failed: int) -> None:
        self._events.append(("rows", (done, failed)))

    def send(self) -> None:
        self._ledger.add.remote(self._events)
        self._events = []


class _watching:  # noqa: N801  a context manager
    """Fetch the ledger's events into the report while the block runs, and at its end until every shard was told of."""

    def __init__(self, ledger: Any, report: Report, show: Callable[[Report], None], shards: int) -> None:
        self._ledger, self._report, self._show, self._shards = ledger, report, show, shards
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._fetch()
            # Events of other processes may arrive after the rows they tell of.
            deadline = time.monotonic() + LAST_EVENTS_SECONDS
            while len(self._report.reads) < self._shards and time.monotonic() < deadline:
                time.sleep(0.1)
                self._fetch()

    def _loop(self) -> None:
        while not self._stop.wait(SHOW_SECONDS):
            try:
                self._fetch()
            except ray.exceptions.RayError:
                return  # the run itself reports what is wrong

    def _fetch(self) -> None:
        events: Iterable[tuple[str, tuple[Any, ...]]] = ray.get(self._ledger.take.remote())
        for name, event in events:
            getattr(self._report, name)(*event)
        self._show(self._report)
