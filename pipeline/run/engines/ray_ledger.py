"""The ledger that workers report to, and the thread of the driver that reads it.

The module imports little, since the ledger's process is one of the first that a run waits for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from phrasebox.pipeline.output.report import Report

TRIAL_SECONDS: Final = 60
"""How long a single sample on trial holds up other ones. It covers the restart of its worker
and one answer; a worker that never comes back must not hold them up for ever."""

SHOW_SECONDS: Final = 0.5

ANSWER_SECONDS: Final = 60
"""How long the driver waits for the ledger: longer than its restart takes, not for ever where the
cluster is gone."""

Event = tuple[str, tuple[Any, ...]]  # "read", or the name of one of `Report`'s methods; its arguments


class Ledger:
    """The work that workers have in hand, and their reports; an actor on the driver's node.

    If it dies, Ray starts it again, empty. Nothing is lost by that: input pieces that it no
    longer knows are counted again, and a batch that killed its worker is tried whole once more.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._in_hand: Counter[str] = Counter()
        self._trial = ""
        self._trial_start = 0.0

    def begin(self, work: str) -> int:
        """Note that a worker takes a batch in hand; return how many workers took it before and died."""
        if self._in_hand[work]:
            self._events.append(("died", ()))
        return self._take(work)

    def begin_sample(self, work: str) -> int | None:
        """Note that a worker takes a single sample of a batch in hand.

        Where memory is short, Ray kills the youngest worker, not the one that takes too much.
        With two samples tried at the same time the innocent one would be blamed. So single
        samples that have lost a worker are tried one after the other.

        Returns:
            How many workers took it before and died; None if it has to wait, which is not
            counted.
        """
        if self._in_hand[work]:
            is_busy = self._trial not in ("", work)
            if is_busy and time.monotonic() - self._trial_start < TRIAL_SECONDS:
                return None
            self._trial = work
            self._trial_start = time.monotonic()
        return self._take(work)

    def _take(self, work: str) -> int:
        deaths = self._in_hand[work]
        self._in_hand[work] += 1
        return deaths

    def finish(self, work: str, events: Sequence[Event] = ()) -> None:
        """Note that work is done, and its events for the report."""
        self._in_hand.pop(work, None)
        if work == self._trial:
            self._trial = ""
        self._events.extend(events)

    def take_events(self) -> list[Event]:
        """Return the events that were reported since the last call."""
        events = self._events
        self._events = []
        return events


def start_ledger() -> Any:
    """Start a ledger on the driver's node, where the loss of another node does not reach it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Without task events: it is called for every batch, and Ray keeps the last 100,000 calls of
    # all, hundreds of MB.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, enable_task_events=False)(Ledger)
    return actor.options(scheduling_strategy=here).remote()


@contextlib.contextmanager
def watching(
    ledger: Any,
    report: Report,
    on_progress: Callable[[], None],
    on_read: Callable[..., None] = lambda *_: None,
) -> Iterator[None]:
    """Fetch the ledger's events into the report while the block runs, and once after it.

    on_read: Called, in a thread, with the event of a piece of the input that was read to its end.
    """
    end = threading.Event()

    def fetch() -> None:
        for name, arguments in ray.get(ledger.take_events.remote(), timeout=ANSWER_SECONDS):
            (on_read if name == "read" else getattr(report, name))(*arguments)
        on_progress()

    def fetch_until_end() -> None:
        while not end.wait(SHOW_SECONDS):
            # Ray starts the ledger again; if anything else is wrong, the run itself raises it.
            with contextlib.suppress(ray.exceptions.RayError):
                fetch()

    thread = threading.Thread(target=fetch_until_end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    fetch()
