"""Fit scores to how often regions are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from phrasebox.pipeline.calibrate.box_fit import FEWEST_IMAGES
from phrasebox.pipeline.calibrate.photograph_fit import PhotographFit
from phrasebox.pipeline.calibrate.presence import write_presence
from phrasebox.pipeline.calibrate.review_fit import ReviewFitFigures, write_reviewed_calibration
from phrasebox.pipeline.calibrate.truth_fit import CalibrationFigures, write_calibration
from phrasebox.pipeline.commands.options import (
    OF_DATASETS,
    OptionalTruth,
    Resized,
    naming_options,
    stopping,
)
from phrasebox.pipeline.commands.tables import (
    format_interval,
    format_value,
    print_matched,
    print_review_counts,
)
from phrasebox.pipeline.config.paths import check_writable
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.evaluate.verdicts import (
    USE,
    box_verdict,
    calibration_verdict,
    replacement_verdict,
)
from phrasebox.pipeline.terminal import console, counted, say
from phrasebox.stages.contract.errors import ConfigError

MORE_ANSWERS: Final = 100  # to ask for if the given answers do not decide

CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.json",
        help="File to write; runs take it as regions.calibration=FILE.json. A DATASET needs it. With --photographs it "
        "may be left out: later runs of the model with the same settings then find the calibration by themselves.",
    ),
]
CalibratedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[/TAG]|PATH",
        help="Only with --photographs: the model to calibrate, as phrasebox run takes it.",
    ),
]
CalibrationSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the dataset's configuration, e.g. --set input.image_root=moved/, or with --photographs one "
        "of later runs, e.g. --set explain.kind=maskclip. Repeatable.",
    ),
]


@naming_options(OF_DATASETS)
def calibrate(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATASET]", help="Folder or URL of a finished dataset. --photographs takes its place."
        ),
    ] = None,
    out: CalibrationFile = None,
    truth: OptionalTruth = None,
    reviews: Annotated[
        bool,
        typer.Option(
            "--reviews",
            help="In place of --truth: fit to what people said of the dataset's regions (phrasebox inspect DATASET "
            "--review), and to the boxes that they dragged. It needs some 200 answers; the verdict at the end says "
            "whether they suffice.",
        ),
    ] = False,
    resized: Resized = False,
    photographs: Annotated[
        Path | None,
        typer.Option(
            "--photographs",
            metavar="DIR",
            help="In place of DATASET and --truth: captioned photographs with boxes, as phrasebox photographs fetches "
            "them. Makes heat maps of them with --model, and fits to their truth.json.",
        ),
    ] = None,
    model: CalibratedModel = None,
    settings: CalibrationSettings = [],  # noqa: B006  typer copies it
) -> None:
    """Fit scores, and learn where boxes are, for the model and settings that the dataset was made with.

    Learned boxes need --truth, or boxes dragged in a review. They are used if they are shown to be better.

    With neither --truth nor --reviews presence alone is fitted, to the captions; scores of regions then still rank.

    \b
    phrasebox calibrate out/ --truth instances.json --out mine.json
    phrasebox calibrate out/ --reviews --out mine.json    after phrasebox inspect out/ --review
    phrasebox run captions.jsonl --images photos/ --model photo --set regions.calibration=mine.json
    phrasebox calibrate --model ViT-B-16/laion2b_s34b_b88k --photographs coco/    for all later runs of the model
    """
    if photographs is not None:
        unused = {"DATASET": dataset, "--truth": truth, "--reviews": reviews, "--resized": resized}
        _reject_beside("--photographs", unused)
        _calibrate_to_photographs(PhotographFit(photographs, model, settings), out)
        return
    _reject_beside("a dataset", {"--model": model})
    if dataset is None:
        raise ConfigError("name a dataset, or photographs with --photographs", key="DATASET")
    if out is None:
        raise ConfigError("name the file to write", key="--out")
    check_writable("out", out)
    if reviews:
        if truth is not None or resized:
            raise ConfigError(
                "leave --truth and --resized out, scores are fitted to what people said", key="--reviews"
            )
        print_reviewed(write_reviewed_calibration(dataset, out, console, settings), out, console)
    elif truth is not None:
        evaluation_set = open_evaluation_set(dataset, truth, settings, resized=resized)
        print_calibration(write_calibration(evaluation_set, out, console), out, console)
    elif resized:
        raise ConfigError(
            "without it there is nothing to fit but presence, for which --resized means nothing",
            key="--truth",
        )
    else:
        _calibrate_presence(dataset, out, settings)


def _calibrate_to_photographs(fit: PhotographFit, out: Path | None) -> None:
    with (
        naming_options(dict.fromkeys(("model.name", "model.checkpoint"), "--model")),
        stopping("stopped. The same command goes on with the heat maps that are made."),
    ):
        figures, place = fit.write(out, console)
    print_calibration(figures, place, console, is_known=out is None)


def _calibrate_presence(dataset: Path, out: Path, settings: Sequence[str]) -> None:
    say(console, write_presence(dataset, out, console, settings).in_words())
    console.print(
        "The calibration knows presence alone: scores of regions still rank, and are no probabilities."
    )
    say(console, _use(out))


def _reject_beside(choice: str, arguments: Mapping[str, object]) -> None:
    """Raise ConfigError for an argument that is given and means nothing beside a choice."""
    for key, value in arguments.items():
        if value is not None and value is not False:
            raise ConfigError(f"it means nothing with {choice}: leave one of them out", key=key)


def print_reviewed(figures: ReviewFitFigures, out: Path, console: Console) -> None:
    """Print how well scores agree with the answers, before and after."""
    table = Table("scores against answers", "before", "after, on images not fitted to")
    errors = (
        f"{format_value(error)} {format_interval(error)}" for error in (figures.before, figures.after)
    )
    table.add_row("calibration error, without chance", *errors)
    print_review_counts(figures.counts, figures.reviewers, console)
    console.print(table)
    if figures.presence:
        say(
            console,
            "The new presences hold for this dataset's share of absent phrases: do not change regions.absent_share.",
        )
    boxes = figures.boxes
    if boxes is not None:
        too_few = f"boxes: the dataset's boxes stay: better ones take {FEWEST_IMAGES} images with answers"
        before = "the dataset's boxes"
        say(console, too_few if boxes.gain is None else box_verdict(boxes.gain, before))
    verdict = replacement_verdict(
        figures.gain,
        "calibration" if figures.replaces else "scores, which only rank",
        f", or answer {MORE_ANSWERS} more",
        has_better_boxes=boxes is not None and bool(boxes.fit.networks),
    )
    _print_verdict(verdict, out, console)


def print_calibration(
    figures: CalibrationFigures, out: Path | None, console: Console, *, is_known: bool = False
) -> None:
    """Print the table for people.

    out: The file; None if it is not kept. is_known: Whether later runs find it by themselves.
    """
    table = Table("figure, on images not fitted to", "value", "95 % interval")
    rows = {
        "calibration_error": figures.calibration_error,
        "calibration_error, fewer captions": figures.error_with_fewer,
        **figures.presence,
    }
    for name, figure in rows.items():
        if figure is None:
            continue
        table.add_row(name, format_value(figure), format_interval(figure))
    print_matched(figures.matched, console)
    say(console, f"{counted(figures.regions, 'region')}, {figures.right:,} of them right")
    console.print(table)
    if figures.box_gain is not None:
        say(console, box_verdict(figures.box_gain))
    gain = figures.gain
    verdict = replacement_verdict(gain, "calibration") if figures.replaces else calibration_verdict(gain)
    if out is None:
        say(console, verdict, "The calibration is not kept; --out FILE.json keeps it.")
        return
    if is_known:
        say(console, f"calibration in {out}; later runs of the model with these settings take it", verdict)
        return
    _print_verdict(verdict, out, console)


def _print_verdict(verdict: str, out: Path, console: Console) -> None:
    """Print where the calibration is, how to use it if that is better, and the verdict."""
    say(console, _use(out) if verdict.startswith(USE) else f"calibration in {out}")
    say(console, verdict)


def _use(out: Path) -> str:
    return f"calibration in {out}; use it with --set regions.calibration={out}"
