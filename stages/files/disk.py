"""What a power cut leaves of a local disk: a renamed file is there once its folder was brought to the disk, too."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

_NOT_FOR_FOLDERS: Final = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR)
"""The errors of file systems, and of systems, that bring no folder to the disk on demand."""


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can. Raise OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise


def sync_all() -> None:
    """Bring all that was written to the disk: faster than file by file where there are many."""
    if hasattr(os, "sync"):
        os.sync()
