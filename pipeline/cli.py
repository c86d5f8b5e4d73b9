"""The command line: parse, call, print, exit code. Heavy imports stand inside the verbs that need them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.commands.calibrate import calibrate
from pipeline.commands.evaluate import evaluate
from pipeline.commands.explain import explain
from pipeline.commands.export import export
from pipeline.commands.inspect import inspect
from pipeline.commands.options import Scenes, Seed
from pipeline.commands.phrases import phrases
from pipeline.commands.run import run
from pipeline.commands.stats import stats
from pipeline.commands.validate import validate
from pipeline.console import console, errors, visible
from stages.contract.errors import PhraseboxError, TooManyErrors

app = typer.Typer(
    name="phrasebox",
    help="Turn captioned images into region-text training data: phrases, boxes and masks, from CLIP alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


app.command()(run)
app.command()(validate)
app.command("eval")(evaluate)
app.command()(calibrate)


app.command()(inspect)


app.command()(stats)


app.command()(export)


app.command()(phrases)


app.command()(explain)


@app.command()
def scenes(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    scenes: Scenes = 100,
    seed: Seed = 0,
) -> None:
    """Draw scenes with captions and exact truth: images/, captions.jsonl, truth.json."""
    from stages.contract.errors import ConfigError
    from stages.model.scenes import write_scenes

    try:
        write_scenes(out, scenes, seed)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror}") from error
    console.print(f"{scenes} scenes in {out}: images/, captions.jsonl, truth.json", soft_wrap=True)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write to; a dataset in it is replaced.")
    ] = Path("out/demo"),
    scenes: Scenes = 100,
    seed: Seed = 0,
) -> None:
    """Draw scenes, make a dataset of them with the embedded model, and measure it; without network and GPU."""
    from pipeline.commands.demo import run_demo

    run_demo(out, scenes, seed, console)


def main() -> None:
    """Entry point: known errors become one readable message and exit code 2; 1 where the work was done all the same."""
    try:
        app()
    except PhraseboxError as error:
        errors.print(f"error: {visible(str(error))}", style="red", highlight=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, TooManyErrors) else 2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
