"""The graph on Ray Data. Only the modules of this folder whose names begin with `ray_` import ray.

    read tasks -> [phrases, prepare] actors on CPUs -> [explain] actors on GPUs -> [regions] tasks -> write

Regions that hold a segmenter are actors, too.

Batches travel as Arrow tables (`stages.contract.schema`). The tasks after the model write shards, and the driver notes
them in the journal (`pipeline.output.journal`), which knows what is done. Actors and tasks are restarted and repeated
without limit, as is Ray Data's default: on machines that come and go a limit would only be a way to lose a long run.
The one thing that would be repeated for ever, a sample that kills its worker, ends as a row with an error
(`ray_workers`).

pyproject.toml allows no later minor version of Ray, because these parts of Ray 2.60 are in use although Ray does not
promise to keep them; tests/architecture/test_private_apis.py has a canary for each:

- The text of a warning: `POOL_WARNING`. A warning would appear on the terminal.
- Environment variables: `RAY_ENVIRONMENT` in `pipeline.engines`. Messages would appear on the terminal, and a run would
  wait three minutes for what killed runs hold of a cluster.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from pipeline.config import RunConfig
from pipeline.engines import CPU_MODEL_WORKERS, OnProgress, WarmUp
from pipeline.engines.inline import BATCH_ROWS, rows_per_batch, rows_per_call, samples_in
from pipeline.engines.ray_cluster import Pools, check_nodes, choose_pools, connected
from pipeline.engines.ray_code import CodeVersion, code_here
from pipeline.engines.ray_ledger import start_ledger, watching
from pipeline.engines.ray_workers import (
    CaptionWorker,
    ModelWorker,
    ShardSource,
    ShardSpec,
    count_samples,
    run_warm_up,
    write_shards,
)
from pipeline.graph import Graph, packages_of
from pipeline.output.folder import DatasetFolder
from pipeline.output.journal import make_entry, part_name
from pipeline.summary import Report
from stages.contract.errors import PhraseboxError
from stages.contract.records import Record
from stages.contract.stage import Stage
from stages.contract.tables import records_to_table
from stages.read import Reader, Shard
from stages.shared.storage import absolute, is_local
from stages.write import row_group_rows

BLOCK_BYTES_A_ROW: Final = 256 * 1024
"""Size at which Ray Data hands a block on, for each record of a batch: small enough that all stages work at once on
small inputs, and so large that batches with pixels of up to 290 px are not cut and put together again."""

INIT_DEATHS: Final = 20
"""How many actors of a stage may fail to start in a row before Ray Data gives up (its default: 0). Covers nodes that
leave. Our own errors do not count: they are raised with the first batch."""

CALLS: Final = 2
"""Calls that a worker on a GPU has in hand: while the device computes one, another is unpacked or packed. A worker on a
CPU would only compute later meanwhile."""

POOL_WARNING: Final = "The minimum number of concurrent actors"
"""Ray Data warns so about an input with fewer batches than there are model workers. Nobody needs to act on it."""


def run(
    graph: Graph,
    shards: Sequence[Shard],
    folder: DatasetFolder,
    config: RunConfig,
    report: Report,
    on_progress: OnProgress,
    warm_up: WarmUp | None = None,
) -> None:
    """See `pipeline.engines.Engine`.

    Raises:
        PhraseboxError: As a worker raised it.
        ResourceError, OutputError: The surroundings no longer allow the run.
        WorkerCodeMismatch: A node has other code than the driver.
    """
    engine = config.engine
    report.expected = samples_in(shards)
    has_segmenter = graph.segmenter is not None
    packages = packages_of(config)
    with connected(engine, folder.path, packages, has_segmenter=has_segmenter) as cores:
        ledger = start_ledger()  # its process starts while the nodes answer
        code = code_here(packages)
        check_nodes(code, _shared_places(config, folder, shards))
        model = config.model
        pools = choose_pools(engine, model.device, model.threads, ray.nodes(), cores, has_segmenter=has_segmenter)
        if pools.note:
            report.note(pools.note)
            on_progress(report)
        workers = _Workers(pools=pools, ledger=ledger, code=code)
        first_records: Sequence[Record] = ()
        if warm_up is not None:
            graph, first_records = warm_up.decide(_compute_first(warm_up, graph, workers))
        if not shards:
            return
        journal = folder.journal
        names = [part_name(shard) for shard in shards]

        def on_read(number: int, samples: int, skipped: Counter[str], keys: Any) -> None:
            report.read(number, samples, skipped)
            journal.add(make_entry(names[number], keys, skipped=skipped))

        for number, name in enumerate(names):
            if name in journal.parts:
                report.read(number, *journal.parts[name])
        report.previous_rows = len(journal.keys)
        todo = [(number, shard) for number, shard in enumerate(shards) if number not in report.reads]
        with watching(ledger, report, on_progress, len(shards), on_read):
            for entries in _write_first(graph, first_records, _shard_spec(folder, config), ledger):
                journal.add_shards(entries)
            keys = journal.keys_with(first_records)
            row_keys = ray.put(keys) if len(keys) else None
            if todo:
                source = ShardSource(graph.reader, todo, ledger, row_keys)
                for entries in _run_graph(graph, source, folder, config, workers):
                    if entries.num_rows:  # none where all rows were there
                        journal.add_shards(entries)
            journal.flush()
        _count_missing(report, graph.reader, shards)


def _count_missing(report: Report, reader: Reader, shards: Sequence[Shard]) -> None:
    """Count the samples of shards that no worker has reported: counts may be lost with their worker."""
    missing = [number for number in range(len(shards)) if number not in report.reads]
    counts = ray.get([ray.remote(count_samples).remote(reader, shards[number]) for number in missing])
    for number, (samples, skipped) in zip(missing, counts, strict=True):
        report.read(number, samples, skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workers:
    """The workers of a run: their numbers, the ledger that they report to, and the driver's code."""

    pools: Pools
    ledger: Any
    code: CodeVersion


def _compute_first(warm_up: WarmUp, graph: Graph, workers: _Workers) -> Any:
    """The result of `WarmUp.compute` in a worker like those of the model; None if it died again and again."""
    pools = workers.pools
    graph = replace(graph, model=_on_device(pools, graph.model))
    environment = _environment(pools, CPU_MODEL_WORKERS)
    # One call, so that its process ends and gives the GPU's memory back.
    task = ray.remote(max_calls=1, **_resources(pools))(run_warm_up)
    try:
        return ray.get(task.remote(warm_up.compute, graph, warm_up.shards, workers.code, environment))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, PhraseboxError) else error from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return None


def _resources(pools: Pools) -> dict[str, Any]:
    """The resources of a model worker, as arguments of Ray."""
    return {"num_cpus": 1, "num_gpus": pools.gpus, "resources": pools.resources or None}


def _environment(pools: Pools, threads: int) -> dict[str, str]:
    # Ray gives a worker as many threads as CPUs it holds, here one. torch.set_num_threads would not help: Ray Data
    # calls an actor from a thread of its own, and OpenMP's setting belongs to the thread that made it.
    environment = {"OMP_NUM_THREADS": str(threads)}
    if pools.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # else all workers of a node would take its first GPU
    return environment


def _on_device(pools: Pools, model: Any) -> Any:
    # A worker that got a GPU which its torch does not see would otherwise compute on a CPU, and nobody would notice.
    return model.computing(device="cuda") if pools.device == "cuda" else model


def _shared_places(config: RunConfig, folder: DatasetFolder, shards: Sequence[Shard]) -> dict[str, str]:
    """The local places that all nodes have to see, by configuration key; all nodes see URLs."""
    places = {"output.path": str(folder.path)}
    if shards:
        places["input.path"] = shards[0].url
    for name in ("image_root", "phrases"):
        place = getattr(config.input, name, None)  # not every kind of input has an image root
        if place is not None:
            places[f"input.{name}"] = absolute(place)
    return {key: place for key, place in places.items() if is_local(place)}


def _write_first(graph: Graph, records: Sequence[Record], spec: ShardSpec, ledger: Any) -> Iterator[Any]:
    """Write the rows of the first images' records; yield the journal's entries of the shards."""
    if records:
        task = ray.remote(max_retries=-1)(write_shards)
        for entries in task.remote(graph.after, ledger, BATCH_ROWS, spec, records_to_table(records)):
            yield ray.get(entries)


def _shard_spec(folder: DatasetFolder, config: RunConfig) -> ShardSpec:
    per_file = config.output.rows_per_file
    return ShardSpec(
        data=folder.data,
        attempt=folder.journal.attempt,
        rows_per_file=per_file,
        rows_per_group=min(per_file, row_group_rows(embed_images=config.output.embed_images)),
        columns=config.output.columns,
    )


def _run_graph(
    graph: Graph, source: ShardSource, folder: DatasetFolder, config: RunConfig, workers: _Workers
) -> Iterator[Any]:
    """Run the graph; yield the journal's entries of the shards as they are written."""
    pools = workers.pools
    batch = rows_per_batch(graph.model, pools.device)
    call = rows_per_call(graph.model, pools.device)
    per_file = config.output.rows_per_file
    with DataContext.current(_context(call)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=POOL_WARNING)
        # As many blocks as tasks: Ray Data would cut a small input into 200 blocks of a few rows.
        rows = ray.data.read_datasource(source, override_num_blocks=source.tasks)
        rows = rows.map_batches(
            CaptionWorker,
            fn_constructor_args=(ray.put(graph.before), workers.ledger, workers.code),
            batch_size=call,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=pools.captions),
            num_cpus=1,
        )
        # Without it blocks would be cut by their bytes, and each would leave the model a remainder to fill up.
        rows = rows.repartition(target_num_rows_per_block=call, strict=True)
        rows = _map_on_models(rows, _on_device(pools, graph.model), workers, call, pools.min_workers)
        after: tuple[Stage, ...] = graph.after
        if graph.segmenter is not None:
            after = ()
            rows = _map_on_models(rows, graph.cuts.on_device(pools.device), workers, call, 1)
        size = call if call <= per_file else batch
        rows = rows.map_batches(
            functools.partial(write_shards, after, workers.ledger, batch, _shard_spec(folder, config)),
            batch_size=max(batch, per_file // size * size),  # whole calls, which would leave a small file otherwise
            batch_format="pyarrow",
        )
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")


def _map_on_models(rows: Any, stage: Stage, workers: _Workers, call: int, min_workers: int) -> Any:
    """Return rows after a stage that holds a model, by workers with the model's share of GPUs and CPUs."""
    pools = workers.pools
    environment = _environment(pools, pools.threads)
    overlap: dict[str, Any] = {}
    if pools.device == "cuda":
        overlap = {"max_concurrent_calls_per_actor": CALLS, "enable_true_multi_threading": True}
    return rows.map_batches(
        ModelWorker,
        fn_constructor_args=(ray.put((stage,)), workers.ledger, workers.code, environment),
        batch_size=call,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min_workers, max_size=pools.max_workers, **overlap),
        **_resources(pools),
    )


def _context(records: int) -> Any:
    """Ray Data's settings for a run. records: How many travel from worker to worker at once."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = records * BLOCK_BYTES_A_ROW
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.raise_original_map_exception = True  # Ray Data's own would carry it as text only
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, and once is enough
    return context
