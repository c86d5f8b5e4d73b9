"""What Ray's workers tell the driver: progress, counts of the input, and which batch each of them has in hand."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.summary import Report
from stages.contract.stage import Forwards

SHOW_SECONDS: Final = 0.5

LAST_EVENTS_SECONDS: Final = 30
"""How long the driver waits at the end for the last read tasks' counts; what is missing then is counted again."""

ANSWER_SECONDS: Final = 60
"""Longer than the ledger needs to start again; where the whole cluster is gone, the driver must still get away."""

TRIAL_SECONDS: Final = 60
"""Longer than a worker needs to start again and to answer one sample; where it never comes back, others must go on."""

Event = tuple[str, tuple[Any, ...]]


class Ledger:
    """An actor on the driver's node. Nothing that must not be lost stands in it alone.

    Should it die, Ray starts it again, empty: shards of the input that it no longer knows are counted again, and a
    batch that killed its worker is tried whole once more.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._in_hand: Counter[str] = Counter()
        self._trial, self._trial_since = "", 0.0

    def begin(self, work: str) -> int:
        """A worker takes a batch in hand. Returns how many did so before and were not heard of again."""
        if self._in_hand[work]:
            self._events.append(("died", ()))
        return self._count(work)

    def _count(self, work: str) -> int:
        self._in_hand[work] += 1
        return self._in_hand[work] - 1

    def begin_alone(self, work: str) -> int | None:
        """As `begin`, for a single sample of a batch; None if it has to wait, which is then not counted.

        Where memory is short Ray kills other workers too, the youngest first: which of two samples it was shows only
        when those that a worker died at are tried one after the other.
        """
        if self._in_hand[work]:
            others = self._trial not in ("", work)
            if others and time.monotonic() - self._trial_since < TRIAL_SECONDS:
                return None
            self._trial, self._trial_since = work, time.monotonic()
        return self._count(work)

    def end(self, work: str) -> None:
        """The work is done."""
        self._in_hand.pop(work, None)
        if work == self._trial:
            self._trial = ""

    def add(self, events: list[Event]) -> None:
        """Names of `Report`'s methods, with their arguments."""
        self._events.extend(events)

    def take(self) -> list[Event]:
        """Everything since the last call."""
        events, self._events = self._events, []
        return events


def start_ledger() -> Any:
    """A ledger beside the driver, where no other node's end reaches it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Without task events: it is called for every batch, and Ray keeps the last 100,000 calls of all, hundreds of MB.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, enable_task_events=False)(Ledger)
    return actor.options(scheduling_strategy=here).remote()


class Told:
    """Events of one worker, sent once a batch."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self._events: list[Event] = []

    def stage(self, name: str, records: int, seconds: float, forwards: Forwards | None) -> None:
        """See `Report.stage`."""
        self._events.append(("stage", (name, records, seconds, forwards)))

    def rows(self, done: int, failed: int) -> None:
        """See `Report.rows`."""
        self._events.append(("rows", (done, failed)))

    def read(self, shard: int, samples: int, skipped: Counter[str]) -> None:
        """See `Report.read`."""
        self._events.append(("read", (shard, samples, skipped)))

    def send(self) -> None:
        """Send them; nobody waits for it."""
        self._ledger.add.remote(self._events)
        self._events = []


class watching:  # noqa: N801  a context manager
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
                continue  # the ledger is started again; the run itself reports what else is wrong

    def _fetch(self) -> None:
        events: Iterable[Event] = ray.get(self._ledger.take.remote(), timeout=ANSWER_SECONDS)
        for name, event in events:
            getattr(self._report, name)(*event)
        self._show(self._report)
