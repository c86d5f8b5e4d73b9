"""The command line: it collects the verbs of `commands/`, and turns known errors into a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from pipeline import __version__
from pipeline.commands.calibrate import calibrate
from pipeline.commands.compare import compare
from pipeline.commands.demo import demo
from pipeline.commands.evaluate import evaluate
from pipeline.commands.explain import explain
from pipeline.commands.export import export
from pipeline.commands.finetune import finetune
from pipeline.commands.inspect import inspect
from pipeline.commands.models import models
from pipeline.commands.phrases import phrases
from pipeline.commands.plan import plan
from pipeline.commands.pool import pool
from pipeline.commands.run import run
from pipeline.commands.scenes import scenes
from pipeline.commands.score_model import score_model
from pipeline.commands.stats import stats
from pipeline.commands.tune import tune
from pipeline.commands.validate import validate
from pipeline.terminal import console, errors, visible
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


VERBS: Final[dict[str, Callable[..., None]]] = {
    "run": run,
    "plan": plan,
    "validate": validate,
    "inspect": inspect,
    "stats": stats,
    "export": export,
    "eval": evaluate,
    "calibrate": calibrate,
    "tune": tune,
    "finetune": finetune,
    "compare": compare,
    "score-model": score_model,
    "explain": explain,
    "phrases": phrases,
    "pool": pool,
    "scenes": scenes,
    "demo": demo,
}
"""The verbs, in the order of `--help`. To add one, write its file in `commands/` and name it here."""

for _name, _verb in VERBS.items():
    app.command(_name)(_verb)

app.add_typer(models, name="models")


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
