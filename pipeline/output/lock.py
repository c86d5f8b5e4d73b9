"""A lock on a dataset's folder: one run at a time.

On a file system the kernel locks a file, and frees it when its process dies. Object storage has
no locks: a run puts its name into an object and renews it as long as it lives (a lease). A run
that finds a lease watches it for `LEASE_SECONDS`, and takes it over if it was not renewed;
clocks of different machines are never compared. Two runs that start within the same second can
both hold the lease for up to `RENEW_SECONDS`. Then one of them finds the other's name in it,
and stops before it finishes anything.
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
from typing import Final

from stages.contract.errors import ResumeError
from stages.shared.storage import AnyPath, ObjectPath, exclusive_lock

LEASE_SECONDS: Final = 60.0  # How long a lease is watched before it counts as abandoned
RENEW_SECONDS: Final = 15.0  # How often a lease is renewed


class Lease:
    """A run's name in a lock object, renewed by a thread until `release`."""

    def __init__(self, lock: ObjectPath) -> None:
        self._lock = lock
        self._name = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}"
        self._renewals = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, wait_s: float) -> None:
        """Take the lease, after watching an existing one for `wait_s`. Raise ResumeError if that one is renewed."""
        lease = self._read()
        deadline = time.monotonic() + wait_s
        while lease is not None and time.monotonic() < deadline:
            time.sleep(min(2.0, wait_s / 10))
            current = self._read()
            if current is not None and current != lease:
                raise ResumeError(
                    f"another run is writing to {self._lock.parent.parent} ({current[0].rpartition(',')[0]}); wait for "
                    "it, or give another folder",
                    key="output.path",
                )
            lease = current
        self._write()
        self._thread.start()

    def check(self) -> None:
        """Raise ResumeError if another run has taken the lease over."""
        lease = self._read()
        if self._lost or lease is None or lease[0] != self._name:
            raise ResumeError(
                f"another run took {self._lock.parent.parent} over: this one stops. Nothing is lost"
            )

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        lease = self._read()
        if lease is not None and lease[0] == self._name:
            self._lock.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                lease = self._read()
                if lease is not None and lease[0] != self._name:
                    self._lost = True
                    return
                self._write()
            except (OSError, ResumeError):
                continue  # a fault of the network: `check` finds out later whether the lease was lost

    def _write(self) -> None:
        self._renewals += 1
        self._lock.write_bytes(json.dumps([self._name, self._renewals]).encode())

    def _read(self) -> tuple[str, int] | None:
        for _ in range(10):
            try:
                name, renewals = json.loads(self._lock.read_bytes())
            except FileNotFoundError:
                return None
            except (
                ValueError
            ):  # it was replaced while it was read: the content is new and its length is the old one
                time.sleep(0.01)
            else:
                return name, renewals
        raise ResumeError(
            f"{self._lock} is not the lease of a run: delete it if nothing writes to the dataset"
        )


@contextmanager
def locked(lock: AnyPath) -> Iterator[Lease | None]:
    """Hold a lock while the block runs. Raise ResumeError if another run holds it, OSError if it cannot be made."""
    if isinstance(lock, ObjectPath):
        lease = Lease(lock)
        lease.acquire(LEASE_SECONDS)
        try:
            yield lease
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
