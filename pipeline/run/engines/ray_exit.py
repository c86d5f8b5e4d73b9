"""The end of a worker's process."""

from __future__ import annotations

import atexit
import functools
import os
import sys


@functools.cache
def leave_at_exit() -> None:
    """Let this worker's process end without Ray's exit handlers and the destructors of its C++ side.

    When Ray 2.60 ends a worker, its scheduler destroys the tasks that are left while it holds
    its lock, and the destructor of a publisher takes the same lock: about one model worker in
    15 never ended, and kept its model, and a GPU's memory with it, until somebody killed it.
    Handlers that were registered earlier do not run, and the exit code is always 0. In a Ray
    worker neither matters: its results and errors have been sent, and Ray learns of failures by
    messages and broken connections, not by exit codes. Only the first call has an effect.
    """
    atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
