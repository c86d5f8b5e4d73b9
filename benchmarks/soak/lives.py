"""Lives of runs: the command line in processes of their own that start within a tenth of a second, to be hurt.

A server process has imported everything, and a life is its fork, so a campaign of hundreds of lives takes minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

PATIENCE_SECONDS: Final = 300  # a life that takes longer hangs

_LIVES: Final = multiprocessing.get_context("forkserver")
_LIVES.set_forkserver_preload(
    [
        "benchmarks.soak.lives",
        "phrasebox.pipeline.commands.cli",
        "phrasebox.pipeline.commands.run",
        "phrasebox.pipeline.run.engines.inline",
        "phrasebox.pipeline.run.start",
        "en_core_web_sm",
        "open_clip",
        "moto",
    ]
)

Prepare = Callable[[], None]
"""What a life does before it runs its command; a function of a module, or a partial of one."""


@dataclass(frozen=True)
class Outcome:
    """How a life ended: its exit code, negative for a signal, and what it printed."""

    code: int
    text: str

    @property
    def refusal(self) -> str:
        """The message of an error, which may have several lines."""
        return self.text[self.text.rfind("error: ") :] if "error: " in self.text else ""


@dataclass(frozen=True)
class Life:
    """One process that runs `phrasebox` with arguments, and the file with what it prints."""

    process: Any
    log: Path

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        log: Path,
        prepare: Sequence[Prepare] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Life:
        """Start a life. environment: Variables that it has beside those of this process."""
        log.touch()
        process = _LIVES.Process(
            target=_live, args=(list(arguments), log, tuple(prepare), dict(environment or {}))
        )
        process.start()
        return cls(process, log)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.exitcode is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        if not self.is_over:
            os.kill(self.process.pid, number)

    def wait(self) -> Outcome:
        """Wait for the end. Raise AssertionError if it hangs."""
        self.process.join(PATIENCE_SECONDS)
        assert self.is_over, f"no end after {PATIENCE_SECONDS} s:\n{self.log.read_text()}"
        return Outcome(self.process.exitcode, self.log.read_text(errors="replace"))


def _live(
    arguments: list[str], log: Path, prepare: Sequence[Prepare], environment: Mapping[str, str]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    for prepare_life in prepare:
        prepare_life()
    from phrasebox.pipeline.commands.cli import main  # noqa: PLC0415  it is imported already, by the server

    sys.argv = ["phrasebox", *arguments]
    main()


def fill_disk(file_bytes: int) -> Prepare:
    """A life in which no file can grow beyond a size: writing fails as on a full disk."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def shorten_lease(seconds: float) -> Prepare:
    """A life whose run counts as gone after seconds in which it did not renew its lease."""
    return partial(_shorten_lease, seconds)


def _shorten_lease(seconds: float) -> None:
    from phrasebox.pipeline.output import lock  # noqa: PLC0415

    lock.LEASE_SECONDS, lock.RENEW_SECONDS = seconds, seconds / 4  # type: ignore[misc]


def interrupt_upload(name: str, number: int, share: float, signal_number: signal.Signals) -> Prepare:
    """A life that gets a signal in the middle of an upload.

    name: A pattern of the objects that count. number: How many are whole before. share: Of the object, what is sent.
    """
    return partial(_interrupt_upload, name, number, share, signal_number)


def _interrupt_upload(name: str, number: int, share: float, signal_number: signal.Signals) -> None:
    from phrasebox.stages.files.storage import ObjectPath  # noqa: PLC0415

    write_from: Any = ObjectPath.write_from
    counter = iter(range(number + 1))

    def hurt(self: ObjectPath, source: IO[bytes], *args: Any, **options: Any) -> None:
        is_hurt = re.search(name, str(self)) is not None and next(counter, None) == number
        write_from(
            self, _Interrupted(source, share, signal_number) if is_hurt else source, *args, **options
        )

    ObjectPath.write_from = hurt  # type: ignore[method-assign]


class _Interrupted:
    """A stream that sends this process a signal where a share of it has been read."""

    def __init__(self, source: IO[bytes], share: float, signal_number: signal.Signals) -> None:
        content = source.read()
        cut = max(1, int(share * len(content)))
        self._parts = [content[:cut], content[cut:]]
        self._signal = signal_number

    def read(self, _size: int = -1) -> bytes:
        if len(self._parts) == 1:
            os.kill(os.getpid(), self._signal)
        return self._parts.pop(0) if self._parts else b""
