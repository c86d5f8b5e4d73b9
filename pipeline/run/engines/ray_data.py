"""The stages on Ray Data. Only the modules of this folder whose names begin with `ray_` import ray.

    read tasks -> [phrases, prepare] actors on CPUs
    -> [explain] actors on GPUs -> [regions] tasks -> write

Regions that hold a segmenter are actors, too.

Batches travel as Arrow tables (`phrasebox.stages.contract.tables`). The tasks after the model write
shards, and the driver notes them in the journal (`phrasebox.pipeline.output.journal`), which knows what
is done. Actors and tasks are restarted and repeated without limit, as is Ray Data's default: on
machines that come and go a limit would only be a way to lose a long run. The one object that
would be repeated for ever, a sample that kills its worker, ends as a row with an error
(`ray_workers`).

pyproject.toml allows no later minor version of Ray, because these parts of Ray 2.60 are in use
although Ray does not promise to keep them; tests/architecture/test_private_apis.py has a canary
for each:

- The text of a warning: `POOL_WARNING`. A warning would appear on the terminal.
- Environment variables: `RAY_ENVIRONMENT` in `phrasebox.pipeline.run.engines`. Messages would appear on the
  terminal, and a run would wait three minutes for what killed runs hold of a cluster.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from phrasebox.pipeline.output.journal import piece_entry, piece_name
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.run.engines import AnswerT
from phrasebox.pipeline.run.engines.ray_cluster import Pools
from phrasebox.pipeline.run.engines.ray_ledger import watching
from phrasebox.pipeline.run.engines.ray_processes import RayProcesses, environment_of, resources_of
from phrasebox.pipeline.run.engines.ray_workers import (
    CaptionWorker,
    ModelWorker,
    PieceSource,
    ShardSpec,
    count_samples,
    write_shards,
)
from phrasebox.pipeline.run.stage_calls import BATCH_ROWS, rows_per_batch, rows_per_call, samples_in
from phrasebox.pipeline.run.steps import AnySteps
from phrasebox.stages.contract.errors import PhraseboxError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.contract.tables import records_to_table
from phrasebox.stages.contract.values import Json
from phrasebox.stages.read import Piece, Reader

if TYPE_CHECKING:
    from phrasebox.pipeline.output.first_images import OnProgress
    from phrasebox.pipeline.run.decisions import Run, Session

BLOCK_BYTES_A_ROW: Final = 256 * 1024
"""Size at which Ray Data hands a block on, for each record of a batch: small enough that all
stages work at once on small inputs, and so large that batches with pixels of up to 290 px are
not cut and put together again."""

INIT_DEATHS: Final = 20
"""How many actors of a stage may fail to start in a row before Ray Data gives up (its default:
0). Covers nodes that leave. Our own errors do not count: they are raised with the first batch."""

MOST_LOOK_DEATHS: Final = 3
"""Worker deaths after which the look at the first images is tried no more, and decides nothing."""

CALLS: Final = 2
"""Calls that a worker on a GPU has in hand: while the device computes one, another is unpacked
or packed. A worker on a CPU would only compute later meanwhile."""

POOL_WARNING: Final = "The minimum number of concurrent actors"
"""Ray Data warns so about an input with fewer batches than there are model workers. Nobody needs to
act on it."""


@contextmanager
def start(run: Run, session: Session, processes: RayProcesses) -> Iterator[RayEngine]:
    """Use Ray's processes for the block, when their nodes are checked.

    Raises:
        ConfigError: A node does not see a file.
        WorkerCodeMismatch: A node has other code than the driver.
    """
    session.report.expected = samples_in(run.pieces)
    processes.nodes.finish()
    if processes.pools.note:
        session.report.note(processes.pools.note)
        session.update()
    yield RayEngine(run=run, session=session, processes=processes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Workers of Ray, see `phrasebox.pipeline.run.engines.Engine`.

    Attributes:
        run: The work.
        session: Its folder and its report.
        processes: Those that were started, or joined.
    """

    run: Run
    session: Session
    processes: RayProcesses

    @property
    def pools(self) -> Pools:
        """The numbers of workers."""
        return self.processes.pools

    @property
    def ledger(self) -> Any:
        """The handle of the `Ledger` that workers report to."""
        return self.processes.ledger

    def compute_first(self, compute: Callable[[AnySteps, OnProgress], AnswerT]) -> AnswerT | None:
        """See `Engine.compute_first`."""
        steps = replace(self.run.steps, model_stage=_on_device(self.pools, self.run.steps.model_stage))
        look = self.processes.take_first().compute.options(max_task_retries=MOST_LOOK_DEATHS)
        try:
            with watching(self.ledger, self.session.report, self.session.update):
                answer: AnswerT = ray.get(look.remote(compute, steps, self.ledger, self.processes.code))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, PhraseboxError) else error from None
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            return None
        return answer

    def make_rows(self, steps: AnySteps, first_records: Sequence[Record] = ()) -> None:
        """See `Engine.make_rows`."""
        reader = self.run.reader
        pieces = self.run.pieces
        report = self.session.report
        folder = self.session.folder
        journal = folder.journal
        names = [piece_name(piece) for piece in pieces]

        def on_read(number: int, skipped: Counter[str], keys: Any) -> None:
            report.read(number, len(keys), skipped)
            journal.add(piece_entry(names[number], keys, skipped))

        for number, name in enumerate(names):
            if name in journal.pieces:
                report.read(number, *journal.pieces[name])
        report.previous_rows = len(journal.keys)
        todo = [(number, piece) for number, piece in enumerate(pieces) if number not in report.reads]
        with watching(self.ledger, report, self.session.update, on_read):
            for entries in self._write_first(steps, first_records):
                folder.note_shards(entries)
            self.processes.end_first()
            keys = journal.keys_with(first_records)
            row_keys = ray.put(keys) if len(keys) else None
            if todo:
                for entries in self._run_steps(steps, PieceSource(reader, todo, self.ledger, row_keys)):
                    if entries.num_rows:  # none where all rows were there
                        folder.note_shards(entries)
            journal.flush()
        _count_missing(report, reader, pieces)

    def _write_first(self, steps: AnySteps, records: Sequence[Record]) -> Sequence[Any]:
        """Write the rows of the first images' records; return the journal's entries of the shards."""
        if not records:
            return ()
        worker = self.processes.take_first()
        table = records_to_table(records)
        entries: Sequence[Any] = ray.get(
            worker.write.remote(steps.last_stages, self.ledger, BATCH_ROWS, self._shard_spec(), table)
        )
        return entries

    def _shard_spec(self) -> ShardSpec:
        output = self.run.config.output
        return ShardSpec(
            data=self.session.folder.data,
            attempt=self.session.folder.journal.attempt,
            rows_per_file=self.run.rows_per_file,
            columns=output.columns,
            check_holder=self.session.folder.check_holder,
            origin=self.session.folder.origin,
        )

    def _run_steps(self, steps: AnySteps, source: PieceSource) -> Iterator[Any]:
        """Run the stages; yield the journal's entries of the shards as they are written."""
        device = self.pools.device
        batch = rows_per_batch(steps.model_stage, device)
        call = rows_per_call(steps.model_stage, device)
        per_file = self.run.rows_per_file
        with DataContext.current(_context(call)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=POOL_WARNING)
            # As many blocks as tasks: Ray Data would cut a small input into 200 blocks of a few
            # rows.
            rows = ray.data.read_datasource(source, override_num_blocks=source.tasks)
            rows = rows.map_batches(
                CaptionWorker,
                fn_constructor_args=(ray.put(steps.before), self.ledger, self.processes.code),
                batch_size=call,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=1,
                    max_size=self.pools.captions,
                    initial_size=self.pools.first_captions(samples_in(self.run.pieces), call),
                ),
                num_cpus=1,
            )
            # Without it blocks would be cut by their bytes, and each would leave the model a
            # remainder to fill up.
            rows = rows.repartition(target_num_rows_per_block=call, strict=True)
            rows = self._map_on_models(
                rows, [_on_device(self.pools, steps.model_stage)], call, self.pools.min_workers
            )
            after = steps.last_stages
            if steps.segmenter is not None:
                on_device = [stage.computing(device=device) for stage in after]
                rows = self._map_on_models(rows, on_device, call, 1)
                after = ()
            size = call if call <= per_file else batch
            rows = rows.map_batches(
                functools.partial(write_shards, after, self.ledger, batch, self._shard_spec()),
                batch_size=max(
                    batch, per_file // size * size
                ),  # whole calls, which would leave a small file otherwise
                batch_format="pyarrow",
            )
            yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")

    def _map_on_models(self, rows: Any, stages: Sequence[Stage], call: int, min_workers: int) -> Any:
        """Return rows after stages of which one holds a model, by workers with the model's share of GPUs and CPUs."""
        pools = self.pools
        overlap: Json = {}
        if pools.device == "cuda":
            overlap = {"max_concurrent_calls_per_actor": CALLS, "enable_true_multi_threading": True}
        return rows.map_batches(
            ModelWorker,
            fn_constructor_args=(
                ray.put(tuple(stages)),
                self.ledger,
                self.processes.code,
                environment_of(pools, pools.threads),
            ),
            batch_size=call,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=min_workers, max_size=pools.max_workers, **overlap),
            **resources_of(pools),
        )


def _count_missing(report: Report, reader: Reader, pieces: Sequence[Piece]) -> None:
    """Count the samples of pieces that no worker has reported: counts may be lost with their worker."""
    missing = [number for number in range(len(pieces)) if number not in report.reads]
    counts = ray.get([ray.remote(count_samples).remote(reader, pieces[number]) for number in missing])
    for number, (samples, skipped) in zip(missing, counts, strict=True):
        report.read(number, samples, skipped)


def _on_device(pools: Pools, model: Any) -> Any:
    # A worker that got a GPU which its torch does not see would otherwise compute on a CPU, and
    # nobody would notice.
    return model.computing(device="cuda") if pools.device == "cuda" else model


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
