"""Which datasets the user of this machine has made.

A `dataset.json` that somebody downloaded names folders, files and models too, and must not decide what is read on this
machine. So a run signs what it stores with a key that only its user can read, and whoever wants to follow a stored
configuration asks `is_own` first. The signature stays valid where the dataset is moved, and says nothing to others.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

KEY_BYTES: Final = 32

SIGNED: Final = ("config", "model_fingerprint")
"""What a signature vouches for."""


def signed(run: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run with their `signature`; null where the user's folders cannot be written to."""
    return {**run, "signature": _signature(run)}


def is_own(run: Mapping[str, Any]) -> bool:
    """Whether this user, on this machine, has made the run."""
    stored, expected = run.get("signature"), _signature(run)
    return isinstance(stored, str) and expected is not None and hmac.compare_digest(stored.encode(), expected.encode())


def _signature(run: Mapping[str, Any]) -> str | None:
    key = _key()
    if key is None:
        return None
    text = json.dumps([run.get(name) for name in SIGNED], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The user's key, made when it is first needed; None where that is not possible."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "phrasebox"
        path = folder / "key"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as file:  # which only the user can read
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                _link(file.name, path)
        key = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return key if len(key) == KEY_BYTES else None


def _link(made: str, path: Path) -> None:
    """Put the key in its place, unless another process has been faster: a key that has signed is never replaced."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
