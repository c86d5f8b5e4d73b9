"""The command line: imports a verb when it is called, and turns errors into a message and an exit code."""

from __future__ import annotations

import io
import os
import pydoc
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.terminal import console, errors, visible
from stages.contract.errors import PhraseboxError, TooManyErrors
from stages.contract.plugins import PluginTable

VERBS: Final[PluginTable[Any]] = PluginTable(
    "phrasebox.commands",
    order=(
        "run",
        "merge",
        "plan",
        "validate",
        "inspect",
        "stats",
        "export",
        "eval",
        "calibrate",
        "tune",
        "finetune",
        "compare",
        "score-model",
        "explain",
        "phrases",
        "scenes",
        "demo",
        "models",
    ),
)
"""The verbs, in the order of `--help`: functions, or apps of typer with verbs of their own. pyproject.toml says where
they are; their order is that of their use."""


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
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            single.command(cmd_name)(verb)
            verb = single
        return typer.main.get_command(verb)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs with what they do, and those of other packages with these."""
        rows = [(name, f"{summary_of(VERBS.module(name))}{VERBS.label(name).removeprefix(name)}") for name in VERBS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


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
