"""The terminal: consoles, a line of progress, and signals: SIGTERM and SIGHUP end a run as Ctrl-C does.

Paths and captions may hold brackets and colons, so nothing that a console prints is markup.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WIDTH: Final = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
"""Columns of tables in files and pipes, where rich takes 80 and cuts figures off; None asks the
terminal."""

console = Console(markup=False, emoji=False, width=WIDTH)
errors = Console(stderr=True, markup=False, emoji=False)
"""Standard output and standard error."""


def say(console: Console, *lines: str) -> None:
    """Print lines that are not wrapped, so that paths and commands in them stay whole."""
    for line in lines:
        console.print(line, soft_wrap=True)


def print_json(values: object, **style: Any) -> None:
    """Print plain values as JSON on standard output; `style` goes to `json.dumps`."""
    sys.stdout.write(json.dumps(values, **{"indent": 1, **style}) + "\n")


def visible(text: str) -> str:
    """Return the text with control characters written out: file names may hold characters that a terminal obeys."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def duration(seconds: float) -> str:
    """Return seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 sample", "2,000 samples"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


FIRST_LINE_SECONDS: Final = 1.0  # seconds that a job takes in silence in a log

LINE_SECONDS: Final = 30.0  # seconds between two lines of progress in a log, where no line can be redrawn


@contextmanager
def progress_bar(console: Console, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show one line that is redrawn on a terminal while the block runs; in a log print a line now and then.

    Both show the time that is left. Yield a function that takes the number of items done.
    """
    if not console.is_terminal:
        yield _log_lines(console, title, total)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = progress.add_task(title, total=total)
    with progress:
        yield lambda done: progress.update(task, completed=done)


def _log_lines(console: Console, title: str, total: int | None) -> Callable[[int], None]:
    start = time.monotonic()
    due = start + FIRST_LINE_SECONDS

    def advance(done: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due = now + LINE_SECONDS
        line = f"{title}: {done:,}"
        if total is not None:
            line += f" of {total:,}"
            if 0 < done < total:
                line += f", {duration((now - start) / done * (total - done))} left"
        say(console, line)

    return advance


SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a run; the last one comes when a terminal is closed."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. It is a KeyboardInterrupt because libraries clean up after that one."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, SIGINT and SIGHUP raise KeyboardInterrupt and SIGTERM raises Terminated.

    A second signal ends the process at once, as safely as kill -9 does. A signal that the process
    ignores from its start stays ignored: shells start background jobs so for SIGINT.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    first_signal: int | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal first_signal
        if first_signal is not None:
            sys.stderr.write("stopped at once.\n")
            sys.stderr.flush()
            os._exit(128 + number)
        first_signal = number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    try:
        for number, handler in handlers.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    except (KeyboardInterrupt, Exception) as error:
        # A library may have replaced it on the way: Ray by another of its kind, DuckDB by an error.
        stop_type = Terminated if first_signal == signal.SIGTERM else KeyboardInterrupt
        if first_signal is None or isinstance(error, stop_type):
            raise
        raise stop_type from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the handlers that a library replaces within the block.

    Only the main thread may change handlers.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
