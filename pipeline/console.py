"""The consoles of the command line. Paths and captions may hold brackets and colons, so nothing in them is markup."""

from __future__ import annotations

from rich.console import Console

console = Console(markup=False, emoji=False)
"""Standard output."""

errors = Console(stderr=True, markup=False, emoji=False)
"""Standard error."""
