"""Whether a file can be written: asked before minutes of work rather than after."""

from __future__ import annotations

import tempfile
from pathlib import Path

from stages.contract.errors import ConfigError


def check_writable(option: str, path: Path) -> None:
    """Raise ConfigError, which names the option, where a file cannot be written. Leaves nothing behind.

    path  of the file; its folder need not be there yet
    """
    refusal = f"{option}: cannot write {path}"
    try:
        if path.is_dir():
            raise ConfigError(f"{refusal}: it is a folder; give the name of a file in it")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise ConfigError(f"{refusal}: {folder} is a file")
        tempfile.TemporaryFile(dir=folder).close()  # os.access says yes to root even where nobody can
    except OSError as error:
        raise ConfigError(f"{refusal}: {error.strerror}") from error
