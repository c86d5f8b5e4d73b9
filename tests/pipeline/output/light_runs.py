"""Whole runs in this process with stages that need no model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.previous_run import Identity
from phrasebox.pipeline.run import run as run_module
from phrasebox.pipeline.run.decisions import Run, RunInput
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.read import make_reader
from tests.pipeline.light import LastStage, SleepStage, resolved_light


class RaisingStage(LastStage):
    """Raises an error from the first batch on that it may not answer any more."""

    def __init__(self, error: BaseException, answers: int) -> None:
        super().__init__(0.0)
        self.error = error
        self.answers = answers

    def process(self, batch: Sequence[Record]) -> list[Record]:
        if not self.answers:
            raise self.error
        self.answers -= 1
        return list(batch)


def light_config(captions: Path, out: Any, **sections: Any) -> RunConfig:
    values = {
        "input": {"kind": "jsonl", "path": str(captions)},
        "model": {"name": "demo", "precision": "fp32"},
        "engine": {"kind": "inline"},
    }
    return RunConfig.model_validate(
        {**values, "output": {"path": str(out), "rows_per_file": 8}, **sections}
    )


@contextmanager
def resolved_by(resolver: Callable[..., Run]) -> Iterator[None]:
    """A function that resolves the runs of this block, with stages of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "resolve", resolver)
        yield


def run_light(config: RunConfig, *, last: Stage | None = None, fresh: bool = False) -> str:
    """Run; returns what was printed. Where the run raises, the error has it in its notes."""

    def resolver(found: RunInput, *_: Any) -> Run:
        config = found.config
        return resolved_light(make_reader(config.input), config, SleepStage(0.0), last or LastStage(0.0))

    printed = StringIO()
    try:
        with resolved_by(resolver):
            run(config, Console(file=printed, width=500), fresh=fresh)
    except BaseException as error:
        error.add_note(printed.getvalue())
        raise
    return printed.getvalue()


def identity_of(config: RunConfig, calibration: str | None = None) -> Identity:
    return Identity(model_fingerprint="light", calibration=calibration, config=config.rows_depend_on())


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".phrasebox/lock"}
