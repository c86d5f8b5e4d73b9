"""The signature that tells a run of this user, on this machine, from those of others.

A run signs its stored configuration with a key that only its user can read. The signature survives
moving the dataset and is meaningless on other machines.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from phrasebox.stages.contract.values import Json

KEY_BYTES: Final = 32
SIGNED_KEYS: Final = ("config", "model_fingerprint")  # of a run, that a signature protects


def sign(run: Json) -> Json:
    """Return a run with its `signature`; None if the user's folders cannot be written to."""
    return {**run, "signature": _signature(run)}


def is_own(run: Json) -> bool:
    """Return whether this user, on this machine, has made the run."""
    stored = run.get("signature")
    expected = _signature(run)
    return (
        isinstance(stored, str)
        and expected is not None
        and hmac.compare_digest(stored.encode(), expected.encode())
    )


def _signature(run: Json) -> str | None:
    key = _key()
    if key is None:
        return None
    text = json.dumps([run.get(name) for name in SIGNED_KEYS], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The user's key, made at its first use; None if it cannot be made or read."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "phrasebox"
        path = folder / "key"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as file:  # which only the user can read
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                with suppress(
                    FileExistsError
                ):  # another process was faster: a key that has signed is never replaced
                    os.link(file.name, path)
        key = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return key if len(key) == KEY_BYTES else None
