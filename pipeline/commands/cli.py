"""The command line: imports a verb when it is called, and turns errors into a message and an exit code."""

from __future__ import annotations

import io
import os
import pydoc
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import chain
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from phrasebox.pipeline import __version__
from phrasebox.pipeline.terminal import console, errors, visible
from phrasebox.stages.contract.errors import DoubtfulCaptions, PhraseboxError, TooManyErrors
from phrasebox.stages.contract.plugins import PluginTable

GROUPS: Final = {
    "Make a dataset": ("run", "plan", "phrases", "merge", "validate"),
    "Look at it": ("inspect", "stats"),
    "Use it": ("export", "finetune"),
    "Measure and improve it": ("eval", "calibrate"),
    "Study models and methods": ("models", "score-model", "compare", "explain"),
    "Try phrasebox": ("demo", "scenes", "photographs"),
}
"""What people want -> the verbs for it, in the order of `--help`."""

EXIT_CODES: Final = """\b
Exit codes:
  0         done
  1         done, and the answer is no: all or too many rows failed, --strict
            doubts the captions, a check or a validation failed
  2         refused: the message says what to do
  130, 143  stopped by Ctrl-C or SIGTERM: finished rows are kept
"""

VERBS: Final[PluginTable[Any]] = PluginTable(
    "phrasebox.commands", order=[*chain.from_iterable(GROUPS.values())]
)
"""The verbs: functions, or apps of typer with verbs of their own. pyproject.toml says where they
are."""


class Verbs(TyperGroup):
    """The verbs, each imported when it is called, so that `phrasebox --help` answers at once."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(VERBS)  # type: ignore[assignment]  # names, for lists and suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a verb, None for an unknown one. Raise PluginError if it does not load."""
        if cmd_name not in VERBS:
            return None
        verb = VERBS[cmd_name]
        if not isinstance(verb, typer.Typer):
            single = typer.Typer(
                add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
            )
            single.command(cmd_name)(verb)
            verb = single
        return typer.main.get_command(verb)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs by what people want, with what they do; then those of other packages, with these."""
        grouped = {*chain.from_iterable(GROUPS.values())}
        for title, names in {**GROUPS, "More": [name for name in VERBS if name not in grouped]}.items():
            if rows := [(name, _summary(name)) for name in names if name in VERBS]:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _summary(name: str) -> str:
    return f"{summary_of(VERBS.module(name))}{VERBS.label(name).removeprefix(name)}"


def summary_of(module: str) -> str:
    """Return the first line of a module's docstring. Its source is read: neither it nor its package is imported."""
    top, *names = module.split(".")
    spec = find_spec(top)
    for name in names:
        spec = spec and PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations)
    if spec is None:
        return f"cannot be used: no module {module}"
    loader: Any = spec.loader
    return pydoc.source_synopsis(io.StringIO(loader.get_source(module))) or ""


app = typer.Typer(
    cls=Verbs,
    name="phrasebox",
    help="Turn captioned images into training data for phrase grounding: phrases, boxes, masks and scores, by CLIP.",
    epilog=EXIT_CODES,
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
        sys.exit(1 if isinstance(error, (TooManyErrors, DoubtfulCaptions)) else 2)
    except KeyboardInterrupt:  # before a command has begun, which says what it keeps
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
