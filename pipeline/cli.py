"""The command line: imports a verb when it is called, and turns errors into a message and an exit code."""

from __future__ import annotations

import os
import sys
from pkgutil import resolve_name
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.terminal import console, errors, visible
from stages.contract.errors import PhraseboxError, TooManyErrors

VERBS: Final[dict[str, tuple[str, str]]] = {
    "run": ("pipeline.commands.run:run", "Make a dataset from captioned images."),
    "merge": ("pipeline.commands.merge:merge", "Make one dataset of the parts of an input."),
    "plan": ("pipeline.commands.plan:plan", "Estimate time, memory and disk for a run."),
    "validate": ("pipeline.commands.validate:validate", "Check every row of a dataset and its files."),
    "inspect": ("pipeline.commands.inspect:inspect", "Look at a dataset in the browser."),
    "stats": ("pipeline.commands.stats:stats", "Count a dataset: images, regions, scores, sizes."),
    "export": ("pipeline.commands.export:export", "Write a dataset in a format that trainers read."),
    "eval": ("pipeline.commands.evaluate:evaluate", "Measure a dataset against ground truth."),
    "calibrate": ("pipeline.commands.calibrate:calibrate", "Fit scores to how often regions are right."),
    "tune": ("pipeline.research.tune.command:tune", "Try settings on images with ground truth."),
    "finetune": ("pipeline.research.finetune.command:finetune", "Fine-tune a CLIP on a dataset."),
    "compare": ("pipeline.research.compare.command:compare", "Measure explainers on the same images and phrases."),
    "score-model": ("pipeline.research.score_model.command:score_model", "Measure what a model knows of regions."),
    "explain": ("pipeline.commands.explain:explain", "Compute heat maps of phrases in one image."),
    "phrases": ("pipeline.commands.phrases:phrases", "Print the phrases of captions as JSON lines."),
    "scenes": ("pipeline.commands.scenes:scenes", "Draw scenes with captions and exact ground truth."),
    "demo": ("pipeline.commands.demo:demo", "Draw scenes, make a dataset of them, and measure it."),
    "models": ("pipeline.commands.models:models", "List the CLIP models that can be explained, or check one."),
}
"""The verbs, in the order of `--help`: module and function, and what the verb does. To add one, write its file in
`commands/` and name it here.
"""


class Verbs(TyperGroup):
    """The verbs, each imported when it is called, so that `phrasebox --help` answers at once."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(VERBS)  # type: ignore[assignment]  # names, for suggestions

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in the order of `--help`."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a verb, None for an unknown one."""
        if cmd_name not in VERBS:
            return None
        verb = resolve_name(VERBS[cmd_name][0])
        if not isinstance(verb, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            alone.command(cmd_name)(verb)
            verb = alone
        return typer.main.get_command(verb)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs with what they do, as VERBS says it, since their files are not imported yet."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


app = typer.Typer(
    cls=Verbs,
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


def main() -> None:
    """Entry point: known errors become one readable message and exit code 2; 1 where the work was done all the same."""
    # The matrices of captions and maps are small: numpy's threads would cost more than they gain. Torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except PhraseboxError as error:
        errors.print(f"error: {visible(str(error))}", style="red", highlight=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, TooManyErrors) else 2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
