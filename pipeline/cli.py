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
from pipeline.commands.options import Config, Scenes, Seed, Settings
from pipeline.commands.phrases import phrases
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


@app.command()
def run(
    config: Config = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Delete the dataset in output.path and start over; asks before it deletes files that no run wrote.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Answer yes to what --fresh asks. Without a terminal the answer is no.")
    ] = False,
    max_error_share: Annotated[
        str | None,
        typer.Option(
            "--max-error-share",
            metavar="SHARE",
            help="Exit code 1 if a larger share of the rows failed, e.g. 0.1 for a tenth; no limit by default. "
            "Short for --set output.max_error_share=SHARE.",
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration with all defaults as YAML and exit.")
    ] = False,
) -> None:
    """Make a dataset from captioned images; the same command again goes on where it stopped.

    \b
    phrasebox run --set input.kind=jsonl --set input.path=captions.jsonl \\
                  --set input.image_root=images/ --set output.path=out/
    phrasebox run my.yaml
    phrasebox run my.yaml --print-config    all keys and their values
    """
    from pipeline.config import load_config

    if max_error_share is not None:
        settings = [*settings, f"output.max_error_share={max_error_share}"]
    resolved = load_config(config, settings)
    if print_config:
        sys.stdout.write(resolved.to_yaml())
        return
    from pipeline.commands.run import run as run_pipeline
    from pipeline.stop import Terminated, stoppable
    from stages.storage import AnyPath

    def may_delete(files: list[AnyPath]) -> bool:
        if yes or not sys.stdin.isatty():
            return yes
        console.print("phrasebox did not write these files:", *files, sep="\n  ", soft_wrap=True)
        return typer.confirm("Delete them too?")

    try:
        with stoppable():
            run_pipeline(resolved, console, fresh=fresh, may_delete=may_delete)
    except KeyboardInterrupt as stop:  # here, since typer makes an exit code of it and says nothing
        errors.print("stopped. What is finished is kept; the same command goes on from here.")
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None


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
