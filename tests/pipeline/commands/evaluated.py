"""Runs on drawn scenes and the console script in this process, for the verbs that judge."""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from phrasebox.pipeline.commands.cli import main
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.run import run

QUIET = Console(quiet=True)


def drawing(count: int, seed: int) -> Any:
    """Make a fixture of a module: a folder of drawn scenes."""

    @pytest.fixture(scope="module")
    def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("drawn")
        write_scenes(folder, count, seed)
        return folder

    return drawn


def config_of(folder: Path, out: Path | None = None, **values: Any) -> RunConfig:
    """A run of `demo` over the scenes in a folder."""
    source = {"kind": "jsonl", "path": str(folder / "captions.jsonl"), "image_root": str(folder / "images")}
    if out is not None:
        values["output"] = {"path": str(out)}
    plain = {"input": source, "model": {"name": "demo"}, "engine": {"kind": "inline"}}
    return RunConfig.model_validate({**plain, **values})


class Terminal(io.StringIO):
    """What somebody types at a terminal."""

    def isatty(self) -> bool:
        return True


def called(
    *arguments: object, stdin: bytes = b"", typed: str = "", columns: int = 300
) -> tuple[int, str, str]:
    """Exit code, output and errors of the console script; `typed`: at a terminal."""
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["phrasebox", *map(str, arguments)])
        patch.setattr(
            sys,
            "stdin",
            Terminal(typed) if typed else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"),
        )
        patch.setenv("COLUMNS", str(columns))
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return code, out.getvalue(), err.getvalue()


def printed(*arguments: object, **options: Any) -> str:
    """Output of a command that succeeds."""
    code, out, err = called(*arguments, **options)
    assert code == 0, err
    return out


def run_aloud(config: RunConfig) -> tuple[Path, str]:
    """The dataset of a run, and what it prints."""
    text = io.StringIO()
    return run(config, Console(file=text, width=500)), text.getvalue()
