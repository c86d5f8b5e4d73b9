"""Check every row of a dataset and its files."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from pipeline.commands.options import FinishedDataset
from pipeline.dataset.validate import validate as problems_of
from pipeline.terminal import console, counted, errors, say, visible
from stages.shared.storage import place_of


def validate(dataset: FinishedDataset) -> None:
    """Check every row of a dataset and its files.

    Prints one line for each problem. Any problem is exit code 1.

    \b
    phrasebox validate out/
    """
    place = place_of(dataset)
    place = dataset if isinstance(place, Path) else place  # a local one as it was given
    problems = 0
    for problem in problems_of(place):
        sys.stdout.write(visible(problem) + "\n")
        problems += 1
    if problems:
        say(errors, f"{counted(problems, 'problem')} in {place}")
        raise typer.Exit(1)
    say(console, f"{place}: valid")
