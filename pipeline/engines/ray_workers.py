"""What runs in Ray's workers: reading input shards, stages over Arrow tables, and the ledger that they report to.

A worker that dies (killed for its memory, its node gone, a fault in a decoder) costs no row and stops no run, because
Ray gives its batch to another worker, again and again. That is a loss where the batch itself is to blame: one image
that crashes the decoder keeps a run of a million from ever ending, and Ray 2.60 has no limit for it short of failing
the run. So the ledger notes which batch is in hand. A batch that comes back is taken one sample at a time, which needs
less memory and shows which sample it is. A sample whose worker died `MOST_DEATHS` times while it was alone in hand
becomes a row with an error.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engines.inline import BATCH_ROWS, read_records, run_stages, samples_in
from pipeline.engines.ray_cluster import Code, refuse_other_code
from pipeline.summary import Report
from stages.contract.errors import InputError, PhraseboxError, RowError
from stages.contract.records import Record
from stages.contract.schema import RECORD_SCHEMA, records_to_rows, records_to_table, table_to_records
from stages.contract.stage import Stage
from stages.read import Reader, Shard

READ_TASKS: Final = 400
"""Maximum number of read tasks; each reads several input shards where there are more. A task costs Ray about 20 ms."""

MOST_DEATHS: Final = 3
"""Worker deaths over one sample after which it becomes an error. Two could be nodes that happened to leave."""

MOST_READ_DEATHS: Final = 10
"""Worker deaths in one read task after which the run fails. Reading needs little memory, so deaths mostly mean lost
nodes; the limit only prevents endless retries."""

WAIT_SECONDS: Final = 0.2
"""Pause before a sample asks again whether it may be tried."""

TRIAL_SECONDS: Final = 60
"""How long a sample that is being tried holds up others. It covers the restart of its worker and one answer; a worker
that never comes back must not hold them up for ever."""

SHOW_SECONDS: Final = 0.5

LAST_EVENTS_SECONDS: Final = 30
"""How long the driver waits at the end for the last read tasks' counts; missing shards are then counted again."""

ANSWER_SECONDS: Final = 60
"""How long the driver waits for the ledger: longer than its restart takes, not for ever where the cluster is gone."""

Event = tuple[str, tuple[Any, ...]]
"""The name of one of `Report`'s methods, and its arguments."""


class Ledger:
    """What workers have in hand, and what they report; an actor on the driver's node.

    If it dies, Ray starts it again, empty. Nothing is lost by that: input shards that it no longer knows are counted
    again, and a batch that killed its worker is tried whole once more.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._in_hand: Counter[str] = Counter()
        self._trial, self._trial_since = "", 0.0

    def begin(self, work: str, *, alone: bool = False) -> int | None:
        """A worker takes work in hand.

        Where memory is short, Ray kills the youngest worker, not the one that takes too much. With two samples tried
        at the same time the innocent one would be blamed, so single samples whose worker died are tried one after the
        other.

        Args:
            work: A name for a batch, or for a single sample of one.
            alone: Whether it is a single sample.

        Returns:
            How many workers took it before and died; None for a sample that has to wait, which is not counted.
        """
        deaths = self._in_hand[work]
        if deaths and alone:
            is_taken = self._trial not in ("", work)
            if is_taken and time.monotonic() - self._trial_since < TRIAL_SECONDS:
                return None
            self._trial, self._trial_since = work, time.monotonic()
        elif deaths:
            self._events.append(("died", ()))
        self._in_hand[work] += 1
        return deaths

    def done(self, work: str, events: Sequence[Event] = ()) -> None:
        """The work is done; here is what to report of it."""
        self._in_hand.pop(work, None)
        if work == self._trial:
            self._trial = ""
        self._events.extend(events)

    def take(self) -> list[Event]:
        """Everything reported since the last call."""
        events, self._events = self._events, []
        return events


def start_ledger() -> Any:
    """Start a ledger on the driver's node, where the loss of another node does not reach it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Without task events: it is called for every batch, and Ray keeps the last 100,000 calls of all, hundreds of MB.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, enable_task_events=False)(Ledger)
    return actor.options(scheduling_strategy=here).remote()


@contextlib.contextmanager
def watching(ledger: Any, report: Report, on_progress: Callable[[Report], None], shards: int) -> Iterator[None]:
    """Fetch the ledger's events into the report while the block runs, and after it until all shards are counted."""
    ended = threading.Event()

    def fetch() -> None:
        for name, arguments in ray.get(ledger.take.remote(), timeout=ANSWER_SECONDS):
            getattr(report, name)(*arguments)
        on_progress(report)

    def fetch_until_ended() -> None:
        while not ended.wait(SHOW_SECONDS):
            # Ray starts the ledger again; if anything else is wrong, the run itself raises it.
            with contextlib.suppress(ray.exceptions.RayError):
                fetch()

    thread = threading.Thread(target=fetch_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    fetch()
    # Events of other processes may arrive after the rows that they tell of.
    deadline = time.monotonic() + LAST_EVENTS_SECONDS
    while len(report.reads) < shards and time.monotonic() < deadline:
        time.sleep(0.1)
        fetch()


class StageWorker:
    """Stages in an actor: table in, table out."""

    def __init__(self, stages: Sequence[Stage], ledger: Any, code: Code) -> None:
        self.stages = stages
        self.ledger = ledger
        # Raised with the first batch: Ray passes on exceptions of tasks unchanged, but those of constructors only as
        # strings.
        self.refusal: PhraseboxError | None = None
        try:
            refuse_other_code(code)
            for stage in stages:
                stage.setup()
        except PhraseboxError as error:
            self.refusal = error

    def __call__(self, table: Any) -> Any:
        """Answer a batch."""
        if self.refusal is not None:
            raise self.refusal
        return records_to_table(run_with_retries(self.stages, table_to_records(table), self.ledger))


class CaptionWorker(StageWorker):
    """The stages before the model; a name of its own in Ray's dashboard and process list."""


class ModelWorker(StageWorker):
    """The stage that holds the model."""


def finish(stages: Sequence[Stage], ledger: Any, rows: int, table: Any, *, columns: dict[str, bool]) -> Iterator[Any]:
    """Run the stages after the model over a table, `rows` at a time, and make dataset rows."""
    for stage in stages:
        stage.setup()
    for start in range(0, table.num_rows, rows):
        records = run_with_retries(stages, table_to_records(table.slice(start, rows)), ledger, last=True)
        yield records_to_rows(records, **columns)


def run_with_retries(
    stages: Sequence[Stage], records: list[Record], ledger: Any, *, last: bool = False
) -> list[Record]:
    """Run records through the stages, one by one if a worker died with this batch in hand.

    Args:
        stages: The stages, already set up.
        records: A batch.
        ledger: The handle of the `Ledger`.
        last: Whether these records become rows next, and are to be reported as such.
    """
    events: list[Event] = []

    def on_progress(*arguments: Any) -> None:
        events.append(("stage", arguments))

    work = f"{stages[0].name}:{records[0].sample.id if records else ''}+{len(records)}"
    if ray.get(ledger.begin.remote(work)):
        answers = [_run_alone(stages, record, on_progress, ledger) for record in records]
    else:
        answers = run_stages(stages, records, on_progress)
    if last:
        events.append(("rows", (len(answers), sum(record.error is not None for record in answers))))
    ledger.done.remote(work, events)
    return answers


def _run_alone(stages: Sequence[Stage], record: Record, on_progress: Callable[..., None], ledger: Any) -> Record:
    work = f"{stages[0].name}:{record.sample.id}"
    while (deaths := ray.get(ledger.begin.remote(work, alone=True))) is None:
        time.sleep(WAIT_SECONDS)
    if deaths < MOST_DEATHS or record.error is not None:
        (answer,) = run_stages(stages, [record], on_progress)
    else:
        detail = (
            f"{record.sample.source}: {deaths} workers died at it in {stages[0].name}, out of memory or by a fault in "
            "a library; look at its image, or where many samples say so give workers more memory: fewer of them by "
            "engine.cpu_workers or engine.explain_workers"
        )
        error = RowError(reason="worker_died", detail=detail)
        answer = replace(record, error=error, phrases=(), dropped_phrases=0, pixels=None, heat_maps=(), regions=())
    ledger.done.remote(work)
    return answer


class ShardSource(Datasource):  # type: ignore[misc]  # ray is untyped
    """The input's shards as read tasks, which give small rows without the pixels of images.

    Args:
        reader: The reader of the input.
        shards: Its shards.
        ledger: The handle of the `Ledger`.
        done: A reference to the sorted ids of rows that are written already, which are left out; None if there are
            none.
    """

    def __init__(self, reader: Reader, shards: Sequence[Shard], ledger: Any, done: Any = None) -> None:
        super().__init__()
        self._reader, self._ledger, self._done = reader, ledger, done
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
        return [
            ReadTask(
                functools.partial(_read, self._reader, group, self._ledger, self._done),
                BlockMetadata(
                    num_rows=samples_in([shard for _, shard in group]),
                    size_bytes=None,
                    input_files=None,
                    exec_stats=None,
                ),
                schema=RECORD_SCHEMA,
            )
            for group in self._groups
        ]


def count(reader: Reader, shard: Shard) -> tuple[int, Counter[str]]:
    """The samples of an input shard, and its rows that give none by reason."""
    counts: list[tuple[int, Counter[str]]] = []
    for _ in read_records(reader, shard, lambda *read: counts.append(read)):
        pass
    return counts[0]


def _read(reader: Reader, group: list[tuple[int, Shard]], ledger: Any, done: Any) -> Iterator[Any]:
    written: NDArray[np.int64] = np.empty(0, np.int64) if done is None else ray.get(done)
    work = f"read:{group[0][0]}"
    if (deaths := ray.get(ledger.begin.remote(work))) >= MOST_READ_DEATHS:
        names = group[0][1].name if len(group) == 1 else f"{group[0][1].name} to {group[-1][1].name}"
        raise InputError(f"{deaths} workers died while they read {names}, out of memory or by a fault in a library")
    events: list[Event] = []
    for number, shard in group:
        every = read_records(reader, shard, lambda *read, number=number: events.append(("read", (number, *read))))
        records = (record for record in every if not _contains(written, record.sample.id))
        while batch := list(islice(records, BATCH_ROWS)):
            yield records_to_table(batch)
    ledger.done.remote(work, events)


def _contains(ordered: NDArray[np.int64], value: int) -> bool:
    index = int(ordered.searchsorted(value))
    return index < len(ordered) and int(ordered[index]) == value
