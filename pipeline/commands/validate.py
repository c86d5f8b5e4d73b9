"""Check every row of a dataset and its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import FinishedDataset
from phrasebox.pipeline.dataset.validate import validate as problems_of
from phrasebox.pipeline.output.repair import repair as repair_manifest
from phrasebox.pipeline.terminal import console, counted, errors, say, visible
from phrasebox.stages.files.storage import place_of


def validate(
    dataset: FinishedDataset,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First make a lost or damaged dataset.json again from the shards, if all of them are there, or add "
            "the list of shards to an old one. The input is not needed.",
        ),
    ] = False,
) -> None:
    """Check every row of a dataset and its files.

    Prints one line for each problem. Any problem is exit code 1. The next run makes the rows of damaged shards anew.

    \b
    phrasebox validate out/
    phrasebox validate out/ --repair    where dataset.json was lost
    """
    if repair:
        say(console, repair_manifest(dataset))
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
