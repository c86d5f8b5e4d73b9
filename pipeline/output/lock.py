"""A lock on a dataset's folder: one run at a time.

On a file system the kernel locks a file, and frees it when its process dies. Object storage has
no locks: a run puts its name into an object and renews it as long as it lives (a lease). A run
that finds a lease watches it for `LEASE_SECONDS`, and takes it over if it was not renewed;
clocks of different machines are never compared. Two runs that start within the same second can
both hold the lease for up to `RENEW_SECONDS`. Then one of them finds the other's name in it,
and stops before it finishes anything.

A run that slept for longer than its lease finds another name in it, or none if the other run has
ended. So a run looks at its lease before each shard and the manifest take their place, and before
it deletes anything (`Holder.check`). Object storage has no writes under a condition here: a run that
falls asleep between that look and the next request is not noticed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from phrasebox.stages.contract.errors import ResumeError
from phrasebox.stages.shared.storage import AnyPath, ObjectPath, exclusive_lock, found_in

LEASE_SECONDS: Final = 60.0  # How long a lease is watched before it counts as abandoned
RENEW_SECONDS: Final = 15.0  # How often a lease is renewed


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds a lease, for the processes that write for it.

    Attributes:
        lock: The lock object.
        name: The run's name in it.
    """

    lock: ObjectPath
    name: str

    def check(self) -> None:
        """Raise ResumeError if the lease is another run's, or gone."""
        lease = _read_lease(self.lock)
        if lease is None or lease[0] != self.name:
            raise ResumeError(
                f"another run took {self.lock.parent.parent} over while this one did not answer: this one stops. "
                "Nothing is lost"
            )


class Lease:
    """A run's name in a lock object, renewed by a thread until `release`."""

    def __init__(self, lock: ObjectPath) -> None:
        self._lock = lock
        self._name = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}"
        self._renewals = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, wait_s: float) -> None:
        """Take the lease, after watching an existing one for `wait_s`. Raise ResumeError if that one is renewed."""
        lease = _read_lease(self._lock)
        deadline = time.monotonic() + wait_s
        while lease is not None and time.monotonic() < deadline:
            time.sleep(min(2.0, wait_s / 10))
            current = _read_lease(self._lock)
            if current is not None and current != lease:
                raise ResumeError(
                    f"another run is writing to {self._lock.parent.parent} ({current[0].rpartition(',')[0]}); wait for "
                    "it, or give another folder",
                    key="output.path",
                )
            lease = current
        self._write()
        self._thread.start()

    @property
    def holder(self) -> Holder:
        """The run that holds it."""
        return Holder(self._lock, self._name)

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        lease = _read_lease(self._lock)
        if lease is not None and lease[0] == self._name:
            # Runs that were killed while they renewed it have left the object that they were writing.
            for path in (*found_in(self._lock.parent, f".{self._lock.name}.*.tmp"), self._lock):
                path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            start = _clock()
            try:
                lease = _read_lease(self._lock)
                if lease is None or lease[0] != self._name:
                    return  # it is another run's, or was: `Holder.check` says so
                self._write()
                # It slept between the two: another run, which has watched since the last renewal, may have ended.
                if _clock() - start > LEASE_SECONDS - RENEW_SECONDS:
                    self._lock.unlink(missing_ok=True)
                    return
            except (OSError, ResumeError):
                continue  # a fault of the network: `Holder.check` finds out later whether the lease was lost

    def _write(self) -> None:
        self._renewals += 1
        self._lock.write_bytes(json.dumps([self._name, self._renewals]).encode())


def _clock() -> float:
    """Return seconds that go on while the process is stopped, and on Linux while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _read_lease(lock: ObjectPath) -> tuple[str, int] | None:
    """Return the name in a lock object and the number of its renewals; None if there is none."""
    for _ in range(10):
        try:
            name, renewals = json.loads(lock.read_bytes())
        except FileNotFoundError:
            return None
        except (
            ValueError
        ):  # it was replaced while it was read: the content is new and its length is the old one
            time.sleep(0.01)
        else:
            return name, renewals
    raise ResumeError(f"{lock} is not the lease of a run: delete it if nothing writes to the dataset")


@contextmanager
def locked(lock: AnyPath) -> Iterator[Holder | None]:
    """Hold a lock while the block runs, and yield the holder of a lease; None of a file.

    Raise ResumeError if another run holds it, OSError if it cannot be made.
    """
    if isinstance(lock, ObjectPath):
        lease = Lease(lock)
        lease.acquire(LEASE_SECONDS)
        try:
            yield lease.holder
        finally:
            lease.release()
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(lock))
        except BlockingIOError as error:
            message = f"another run is writing to {lock.parent.parent}; wait for it, or give another folder"
            raise ResumeError(message, key="output.path") from error
        yield None
