"""Writes to a dataset's folder that fail: which errors are about that, and what the user reads."""

from __future__ import annotations

import errno
import os
from typing import Final

from stages.contract.errors import OutputError, one_line
from stages.shared.storage import AnyPath, ObjectPath

_WRITE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


def is_about_writing(path: AnyPath, error: OSError) -> bool:
    """Return whether the error came from writing below `path`: its number or its text says so.

    Errors of object storage have neither a number nor a file's name. Reading reports its own as InputError
    (`stages.read.read_shard`), so an error without a file's name is taken as one of writing there.
    """
    if error.errno in _WRITE_ERRORS or str(path) in str(error):
        return True
    return isinstance(path, ObjectPath) and _file_of(error) is None


def cannot_write(path: AnyPath, error: OSError) -> OutputError:
    """The error to raise for a write that failed. It names another file where that one cannot be written."""
    why = os.strerror(error.errno) if error.errno else one_line(error)
    place = path if str(path) in str(error) else _file_of(error) or path
    return OutputError(
        f"cannot write to {place}: {why}. What is finished is kept: mend that, and the same command goes on from there"
    )


def _file_of(error: OSError) -> str | None:
    """The file that an error names. Ray puts advice of its own in that place when it passes an error on."""
    name = error.filename
    return name if isinstance(name, str) and os.path.isabs(name) else None
