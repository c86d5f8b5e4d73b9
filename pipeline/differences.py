"""Where two sets of settings differ, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(found: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """Lines "key: found there, wanted now" for the leaves of nested dicts that differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*found, *wanted]):
            yield from differences(found.get(name), wanted.get(name), f"{key}.{name}" if key else name)
    elif found != wanted:
        yield f"{key.removeprefix('config.')}: {found!r} there, {wanted!r} now"
