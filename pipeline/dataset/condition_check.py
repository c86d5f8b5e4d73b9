"""The check of a condition in a process of its own, which can be ended and has a limit of memory.

DuckDB computes the constant parts of a condition when it plans, as those of
`levenshtein(repeat('a', 300000), repeat('b', 300000)) > 1`. Nothing interrupts that, and its own
limit of memory does not hold for values.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import lru_cache
from typing import Final

from phrasebox.pipeline.dataset.selection import Selection, Selector
from phrasebox.stages.contract.errors import ConfigError

CHECK_SECONDS: Final = 30.0
CHECK_BYTES: Final = 4 << 30  # of addresses, of which the libraries alone take 1 GB

_REFUSED: Final = 3  # exit status
_CODE: Final = "from phrasebox.pipeline.dataset.condition_check import check_here; check_here()"


@lru_cache(maxsize=1000)
def check_condition(where: str) -> None:
    """Raise ConfigError unless a text is one SQL condition over `REGION_COLUMNS`, whose constants are soon computed."""
    # -P: a folder of the user may hold a module with the name of a library.
    command = [sys.executable, "-P", "-c", _CODE]
    try:
        answer = subprocess.run(  # noqa: S603  the command is ours, and the condition is its input
            command,
            input=json.dumps(where),
            text=True,
            capture_output=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = f"the condition took longer than {CHECK_SECONDS:g} s before the first row, and was stopped"
        raise ConfigError(text, key="where") from error
    if answer.returncode == _REFUSED:
        raise ConfigError(answer.stdout.strip(), key="where")
    if answer.returncode:
        text = f"the condition needs more than {CHECK_BYTES >> 30} GB before the first row, and was stopped"
        raise ConfigError(text, key="where")


def check_here() -> None:
    """Check the condition at standard input. Exit with `_REFUSED` and a message if it is none."""
    resource.setrlimit(resource.RLIMIT_AS, (CHECK_BYTES, CHECK_BYTES))
    seconds = round(CHECK_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # also where the viewer has ended meanwhile
    try:
        Selector(Selection(where=json.load(sys.stdin)))
    except ConfigError as error:
        print(error.args[0])
        sys.exit(_REFUSED)
