"""The consoles of the command line. Paths and captions may hold brackets and colons, so nothing in them is markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(markup=False, emoji=False)
"""Standard output."""

errors = Console(stderr=True, markup=False, emoji=False)
"""Standard error."""


def visible(text: str) -> str:
    """The text with control characters written out: file names may hold characters that a terminal would obey."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


@contextmanager
def progress_bar(console: Console, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """One line that is redrawn on a terminal while the block runs, and silent elsewhere.

    Gives a function that takes the number of things done.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task(what, total=total)
    with progress:
        yield lambda done: progress.update(task, completed=done)
