"""The loop of every training here: steps in phases, a line of the log now and then, checkpoints, and resuming."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.finetune.ranks import RankGroup
from stages.contract.errors import OutputError, ResumeError, one_line
from stages.shared.storage import replacing

LATEST: Final = "latest.pt"  # the checkpoint to resume from
PREVIOUS: Final = "previous.pt"  # the checkpoint before it, in case that one is damaged
LOG: Final = "log.jsonl"  # a line for every so many steps

OnStep = Callable[[int, int], None]
"""Called on the leading rank after each step, with the number of steps that are done and of all."""


class TrainingFolder:
    """The folder of a training. Raises OutputError if it does not exist and cannot be created."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror}") from error

    def read_checkpoint(self) -> dict[str, Any] | None:
        """Return the latest checkpoint; None if there is none. Raise ResumeError if it is damaged."""
        path, before = self.path / LATEST, self.path / PREVIOUS
        path = path if path.exists() else before  # killed between two renames
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            found["step"], found["log_bytes"], found["unlogged"]
        except Exception as error:  # torch raises many kinds for a damaged file
            advice = f"move {before} to its place to resume from it" if before.exists() else "give another --out"
            raise ResumeError(
                f"{path} is damaged ({one_line(error)[:200]}): {advice}, or begin anew with --fresh"
            ) from error
        return found

    def write_checkpoint(self, saved: Mapping[str, Any]) -> None:
        """Replace the latest checkpoint, which becomes the previous one. Raise OutputError, which keeps both."""
        path = self.path / LATEST
        try:
            with replacing(path) as temporary:
                with temporary.open("wb") as file:  # whose errors say what is wrong; torch's own writer does not
                    torch.save(dict(saved), file)
                if path.exists():
                    os.replace(path, self.path / PREVIOUS)
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            raise OutputError(
                f"cannot write {path}: {one_line(error)[:200]}. The checkpoint before it is kept: make room and give "
                "the same command to resume"
            ) from error

    def log(self, line: Mapping[str, Any]) -> int:
        """Append a line to the log and return the log's bytes. Raise OutputError."""
        path = self.path / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            return path.stat().st_size
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}. The checkpoints are kept") from error

    def cut_log(self, size: int) -> None:
        """Drop the log lines of steps that are taken again: all beyond the first `size` bytes."""
        path = self.path / LOG
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    def lines(self) -> list[dict[str, Any]]:
        """Return the log."""
        path = self.path / LOG
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def clear(self) -> None:
        """Delete log and checkpoints, and nothing else."""
        for path in (*(self.path / name for name in (LATEST, PREVIOUS, LOG)), *self.path.glob(f".{LATEST}.*.tmp")):
            path.unlink(missing_ok=True)


class TrainingRun(ABC):
    """A training on one rank, with `phases` of so many steps each."""

    log_every = 10  # steps of a line of the log; the last step of a phase ends a line, too

    def __init__(
        self, folder: TrainingFolder, phases: Sequence[int], checkpoint_every_s: float, ranks: RankGroup
    ) -> None:
        self.folder, self.phases, self.ranks = folder, phases, ranks
        self.steps, self.step = sum(phases), 0  # of all phases, and those taken so far
        self.means: dict[str, float] = {}  # losses of the last line of the log
        self._checkpoint_every_s, self._saved_s = checkpoint_every_s, time.monotonic()
        self._unlogged: list[dict[str, Tensor]] = []
        self._log_bytes = 0
        self._is_half_done = False

    @abstractmethod
    def begin(self, phase: int) -> None:
        """Prepare the steps of a phase that are left."""

    @abstractmethod
    def take_step(self, phase: int, step: int) -> dict[str, Tensor]:
        """Take a step, by its number within its phase; return its losses. Call `changing` before weights change."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what `restore` needs beside the step."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""

    def line(self, phase: int, step: int) -> dict[str, Any]:
        """Return what a line of the log says beside the losses, after a number of steps of a phase."""
        return {"step": self.step}

    def changing(self) -> None:
        """Note that weights are about to change: a stop from here to the end of the step writes no checkpoint."""
        self._is_half_done = True

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.restore(saved)
        self.step, self._log_bytes, self._unlogged = saved["step"], saved["log_bytes"], saved["unlogged"]
        if self.ranks.leads:
            self.folder.cut_log(self._log_bytes)

    def run(self, on_step: OnStep | None = None) -> None:
        """Take the steps that are left. A stop by KeyboardInterrupt between two steps writes a checkpoint first."""
        first = 0
        try:
            for phase, steps in enumerate(self.phases):
                last = first + steps
                if self.step < last:
                    self.begin(phase)
                while self.step < last:
                    self._unlogged.append(self.take_step(phase, self.step - first))
                    self.step += 1
                    self._is_half_done = False
                    if self.step % self.log_every == 0 or self.step == last:
                        self._log(phase, self.step - first)
                    if on_step is not None and self.ranks.leads:
                        on_step(self.step, self.steps)
                    if self.step == last or time.monotonic() - self._saved_s >= self._checkpoint_every_s:
                        self._save()
                first = last
        except KeyboardInterrupt:
            if not self._is_half_done:
                self._save()
            raise

    def _log(self, phase: int, step: int) -> None:
        losses, self._unlogged = self._unlogged, []
        means = {name: torch.stack([each[name].cpu() for each in losses]).mean() for name in losses[0]}
        self.means = {name: round(float(mean), 5) for name, mean in means.items()}
        if self.ranks.leads:
            self._log_bytes = self.folder.log({**self.line(phase, step), **self.means})

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        if self.ranks.leads:
            saved = {"step": self.step, "log_bytes": self._log_bytes, "unlogged": self._unlogged}
            self.folder.write_checkpoint({**saved, **self.state()})
