"""phrasebox's verbs in processes that a server forks: what takes seconds to import is imported once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FORKS: Final = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "__main__",
        "phrasebox.pipeline.run.run",
        "phrasebox.pipeline.research.finetune.command",
        "phrasebox.pipeline.research.finetune.loop",
        "phrasebox.pipeline.research.score_model.command",
        "phrasebox.pipeline.research.score_model.job",
    ]
)


def call_verb(arguments: Sequence[str], folder: Path) -> tuple[str, float]:
    """Run a verb in a folder, with one thread, and return what it prints and its processor time in seconds.

    End the program with its messages if it fails.
    """
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }  # of the server, which the first call starts
    with tempfile.TemporaryDirectory() as temporary:
        process = FORKS.Process(target=_run, args=(arguments, folder, Path(temporary)))
        process.start()
        process.join()
        printed, messages = ((Path(temporary) / name).read_text("utf-8") for name in ("out", "errors"))
        if process.exitcode:
            raise SystemExit(
                f"phrasebox {' '.join(arguments)}\nexit code {process.exitcode}\n{printed[-2000:]}\n{messages[-4000:]}"
            )
        return printed, float((Path(temporary) / "seconds").read_text("utf-8"))


def _run(arguments: Sequence[str], folder: Path, output: Path) -> None:
    """Run a verb in this process, with files for what it prints and for its processor time."""
    from phrasebox.pipeline.commands.cli import main  # noqa: PLC0415 - its consoles write to the streams of the import

    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["phrasebox", *arguments]
    try:
        main()
    finally:
        sys.stdout.flush()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        (output / "seconds").write_text(f"{usage.ru_utime + usage.ru_stime}", encoding="utf-8")
