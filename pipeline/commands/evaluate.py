"""Measure a dataset against ground truth."""

from __future__ import annotations

from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import (
    OF_DATASETS,
    AsJson,
    DatasetSettings,
    FinishedDataset,
    Resized,
    Truth,
    naming_options,
)
from phrasebox.pipeline.commands.tables import print_evaluation
from phrasebox.pipeline.evaluate.evaluation import Part, evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.terminal import console, errors, print_json


@naming_options(OF_DATASETS)
def evaluate(
    dataset: FinishedDataset,
    truth: Truth,
    maps: Annotated[
        bool,
        typer.Option(
            "--maps/--no-maps",
            help="Whether to measure heat maps: pointing and energy. They are computed again from the input "
            "if the dataset does not hold them (output.heat_maps), or if --set names a key of model, phrases, images "
            "or explain.",
        ),
    ] = True,
    absent: Annotated[
        bool,
        typer.Option(
            "--absent",
            help="Also test each image with phrases from other images, and measure how well they are recognised as "
            "absent. Requires the model and the images.",
        ),
    ] = False,
    as_json: AsJson = False,
    resized: Resized = False,
    settings: DatasetSettings = [],  # noqa: B006  typer copies it
) -> None:
    """Measure a dataset against ground truth: pointing, boxes, masks, scores; with 95 % intervals and a verdict.

    \b
    phrasebox eval out/ --truth instances.json
    phrasebox eval out/ --truth Entities/ --absent
    """
    choice: dict[Part, bool] = {"maps": maps, "absent": absent}
    parts = [part for part, is_chosen in choice.items() if is_chosen]
    evaluation_set = open_evaluation_set(dataset, truth, settings, resized=resized)
    evaluation = evaluate_dataset(evaluation_set, errors if as_json else console, parts)
    if as_json:
        print_json(evaluation.to_json())
    else:
        print_evaluation(evaluation, console)
