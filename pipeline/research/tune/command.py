"""Search settings on images with ground truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.options import (
    OF_DATASETS,
    AsJson,
    DatasetSettings,
    FinishedDataset,
    ImageRoot,
    OptionalTruth,
    Resized,
    naming_options,
    with_image_root,
)
from pipeline.commands.tables import format_heading, make_figure_table
from pipeline.config_text import dump_yaml
from pipeline.evaluate.evaluation_set import open_evaluation_set
from pipeline.evaluate.reviews.truth import open_reviewed_dataset
from pipeline.paths import check_writable, write_file
from pipeline.research.tune.session import Tuning, tune_settings
from pipeline.research.tune.trials import FIGURES, DecidingFigure, TrialFigures, TuningSession
from pipeline.terminal import console, counted, errors, print_json, say
from stages.contract.errors import ConfigError

SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.yaml",
        help="Write settings that are better, for `phrasebox run --config`.",
    ),
]
MostImages = Annotated[
    int,
    typer.Option(
        "--limit", metavar="N", min=1, help="Try the settings on the first N images that are known."
    ),
]


@naming_options(OF_DATASETS | {"by": "--by"})
def tune(
    dataset: FinishedDataset,
    truth: OptionalTruth = None,
    reviews: Annotated[
        bool,
        typer.Option("--reviews", help="Judge by the answers of `phrasebox inspect --review` instead."),
    ] = False,
    by: Annotated[
        DecidingFigure | None,
        typer.Option("--by", help="The figure that decides: box_iou by default, agreement with --reviews."),
    ] = None,
    out: SettingsFile = None,
    most: MostImages = 500,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="M", min=0.0, help="Begin no try after M minutes.")
    ] = math.inf,
    as_json: AsJson = False,
    images: ImageRoot = None,
    resized: Resized = False,
    settings: DatasetSettings = [],  # noqa: B006  typer copies it
) -> None:
    """Try explainers, sizes of the image, affinity and cuts one after the other, and keep what is better beyond chance.

    All tries are measured without a calibration: fit one for the settings that stay. Choose on some
    images, and report `phrasebox eval` on others.

    \b
    phrasebox tune out/ --truth instances.json --minutes 60 --out tuned.yaml
    phrasebox tune out/ --reviews --out tuned.yaml
    """
    if (truth is not None) == reviews:
        raise ConfigError("tune needs --truth FILE or --reviews, and not both")
    if out is not None:
        check_writable("out", out)
    settings = with_image_root(images, settings)
    if truth is None:
        evaluation_set, wrong = open_reviewed_dataset(dataset, settings)
    else:
        evaluation_set = open_evaluation_set(dataset, truth, settings, resized=resized)
        wrong = None
    progress = errors if as_json else console
    session = TuningSession(
        evaluation_set=evaluation_set,
        wrong=wrong,
        by=by or ("agreement" if reviews else "box_iou"),
        console=progress,
    )
    tuning = tune_settings(session, most=most, minutes=minutes)
    if as_json:
        print_json(tuning.to_json())
    else:
        print_tuning(tuning, console)
    if out is not None:
        say(progress, _write_better(tuning, out))
    if not as_json:
        say(console, tuning.verdict)


def _write_better(tuning: Tuning, out: Path) -> str:
    """Write the settings if they are better than the dataset's, and return what was done."""
    if not tuning.best:
        return f"{out} is not written: it would change nothing"
    write_file("out", out, dump_yaml(tuning.settings))
    return f"the best settings are in {out}"


def print_tuning(tuning: Tuning, console: Console) -> None:
    """Print the table for people: a line for each try with its gain, and the settings that stay."""
    is_wide = console.width >= 110  # a narrow terminal has room for the deciding figure alone
    columns = [
        name for name in FIGURES if tuning.start[name] is not None and (is_wide or name == tuning.by)
    ]
    table = make_figure_table("", [*map(format_heading, columns), "gain", "from", "to"])

    def add(name: str, values: TrialFigures, *gain: str) -> None:
        cells = ["-" if (value := values[column]) is None else f"{value:.3f}" for column in columns]
        table.add_row(name, *cells, *(gain or ("",) * 3))

    add("the dataset", tuning.start)
    add("without its calibration", tuning.base)
    table.add_section()
    steps = tuning.steps
    for number, step in enumerate(steps, start=1):
        values = " ".join(str(value) for value in step.changes.values())
        bounds = (step.gain.value, step.gain.low, step.gain.high)
        gains = ["-" if math.isnan(bound) else f"{bound:+.3f}" for bound in bounds]
        add(f"{step.group}: {values}{' *' if step.stays else ''}", step.figures, *gains)
        if number == len(steps) or steps[number].group != step.group:
            table.add_section()
    if tuning.best:
        add("the best", tuning.figures)
    say(
        console,
        f"{counted(tuning.images, 'image')}, {counted(tuning.phrases, 'phrase')} with a known answer",
    )
    console.print(table)
    if steps:
        say(console, f"* stays: its gain in {tuning.by} over what stays above it is beyond chance")
    for reason in tuning.skipped:
        say(console, f"not tried: {reason}")
    if tuning.best and tuning.settings["regions"]["rule"] == "fitted":
        say(
            console,
            "regions.rule=fitted needs a calibration: run with these settings, then fit it with phrasebox calibrate",
        )
