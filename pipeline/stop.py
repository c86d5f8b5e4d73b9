"""Being told to stop: SIGTERM ends a run as Ctrl-C does, and a second signal ends it at once."""

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
    """SIGTERM came. A KeyboardInterrupt, since libraries clean up for that one."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGINT raises KeyboardInterrupt and SIGTERM Terminated.

    A second one leaves at once, as safely as kill -9 does. A signal that the process was started to ignore, as a
    shell does with SIGINT for what runs in the background, stays ignored.
    """
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    told = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal told
        if told:
            sys.stderr.write("stopped at once.\n")
            sys.stderr.flush()
            os._exit(128 + number)
        told = True
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
    """Put the handlers back that a library replaces within the block, as it can in the main thread only."""
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in kept.items():
            if former is not None and signal.getsignal(number) != former:
                signal.signal(number, former)
