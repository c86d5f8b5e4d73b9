"""`phrasebox calibrate`: fit the scores of a model and its settings to how often regions are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.options import Finished, MovedImages, OverDataset, Resized, Truth, moved
from pipeline.commands.tables import interval, number, print_matched
from pipeline.evaluate.calibrate import write_calibration
from pipeline.terminal import console


def calibrate(
    dataset: Finished,
    truth: Truth,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE.json", help="File to write; runs take it as regions.calibration=FILE.json."
        ),
    ],
    presence: Annotated[
        bool,
        typer.Option(
            "--presence/--no-presence",
            help="Also fit how likely a phrase is in its image at all. Requires the model and the images.",
        ),
    ] = True,
    images: MovedImages = None,
    resized: Resized = False,
    settings: OverDataset = [],  # noqa: B006  typer copies it
) -> None:
    """Fit scores to how often regions are right, for the model and settings that the dataset was made with."""
    figures = write_calibration(
        dataset, truth, out, console, moved(images, settings), resized=resized, presence=presence
    )
    print_calibration(figures, out, console)


def print_calibration(figures: Mapping[str, Any], out: Path, console: Console) -> None:
    """Return the table for people."""
    table = Table("figure, on images not fitted to", "value", "95 % interval")
    for name in ("risk_coverage_area", "calibration_error", "presence_auc", "similarity_auc"):
        figure = {**figures, **figures.get("presence", {})}.get(name)
        if figure is not None:
            table.add_row(name, number(figure), interval(figure))
    print_matched(figures["matched"], console)
    console.print(f"{figures['regions']:,} regions, {figures['right']:,} of them right", soft_wrap=True)
    console.print(table)
    console.print(f"calibration in {out}; use it with --set regions.calibration={out}", soft_wrap=True)
