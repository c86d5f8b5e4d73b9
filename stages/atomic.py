"""Small files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.places import AnyPath


@contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """A temporary path to write to; what is written takes the place of `path` when the block ends well.

    It lies beside `path`, or for object storage on this machine, to be put as one object.
    """
    if isinstance(path, Path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name
        path.write_bytes((Path(folder) / path.name).read_bytes())


def write_text(path: AnyPath, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
