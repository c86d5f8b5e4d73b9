"""The consoles of the command line. Paths and captions may hold brackets and colons, so nothing in them is markup."""

from __future__ import annotations

from rich.console import Console

console = Console(markup=False, emoji=False)
"""Standard output."""

errors = Console(stderr=True, markup=False, emoji=False)
"""Standard error."""


def visible(text: str) -> str:
    """The text with control characters written out: file names may hold characters that a terminal would obey."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
