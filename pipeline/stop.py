"""Signals: SIGTERM ends a run as Ctrl-C does, and a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. It is a KeyboardInterrupt because libraries clean up after that one."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, SIGINT raises KeyboardInterrupt and SIGTERM raises Terminated.

    A second signal ends the process at once, as safely as kill -9 does. A signal that the process was started to
    ignore stays ignored; shells start background jobs so for SIGINT.
    """
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    is_stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            sys.stderr.write("stopped at once.\n")
            sys.stderr.flush()
            os._exit(128 + number)
        is_stopping = True
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    try:
        for number, former in kept.items():
            if former != signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        for number, former in kept.items():
            signal.signal(number, former)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the handlers that a library replaces within the block. Only the main thread may change handlers."""
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in kept.items():
            if former is not None and signal.getsignal(number) != former:
                signal.signal(number, former)
