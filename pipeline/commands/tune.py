"""`phrasebox tune`: try settings of explain and regions on images with ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.commands.options import Finished, Json, MovedImages, OverDataset, Resized, Truth, moved
from pipeline.commands.tables import compact_table, heading
from pipeline.evaluate.tune import FIGURES, Figure, tuned, write_settings
from pipeline.terminal import console, errors, print_json


def tune(
    dataset: Finished,
    truth: Truth,
    by: Annotated[Figure, typer.Option("--by", help="The figure that decides.")] = "box_recall",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.yaml", help="Write the best settings, for `phrasebox run --config`."),
    ] = None,
    most: Annotated[
        int,
        typer.Option("--most", metavar="N", min=1, help="Try the settings on the first N images with ground truth."),
    ] = 500,
    as_json: Json = False,
    images: MovedImages = None,
    resized: Resized = False,
    settings: OverDataset = [],  # noqa: B006  typer copies it
) -> None:
    """Try settings of explain and regions on images with ground truth, one after the other, and keep the better ones.

    Heat maps are computed once. Each setting is measured with the calibration that a run with it finds: one that was
    fitted to other settings is not used (regions.rule=fitted then is a fixed share). Choose on some images, and report
    `phrasebox eval` on others.
    """

    figures = tuned(
        dataset, truth, errors if as_json else console, moved(images, settings), by=by, most=most, resized=resized
    )
    if out is not None:
        write_settings(figures["best"], out)
    if as_json:
        print_json(figures)
        return
    print_tuning(figures, console)
    if out is not None:
        console.print(f"the best settings are in {out}", soft_wrap=True)


def print_tuning(figures: Mapping[str, Any], console: Console) -> None:
    """Return the table for people: a line for each try, and the settings that stay."""
    table = compact_table("", [heading(name) for name in FIGURES])
    table.add_row("the dataset's settings", *_cells(figures["start"]), end_section=True)
    steps = figures["steps"]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        values = " ".join(str(value) for value in step["changes"].values())
        ends = following is None or following["group"] != step["group"]
        name = f"{step['group']}: {values}{' *' if step['kept'] else ''}"
        table.add_row(name, *_cells(step["figures"]), end_section=ends)
    console.print(f"{figures['images']:,} images, {figures['targets']:,} phrases with known boxes", soft_wrap=True)
    console.print(table)
    console.print(
        f"* stays, by {figures['by']}; each group is tried with the settings that stay above it", soft_wrap=True
    )


def _cells(figures: Mapping[str, Any]) -> list[str]:
    return ["-" if figures[name] is None else f"{figures[name]:.3f}" for name in FIGURES]
