"""`phrasebox compare`: explainers side by side on the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.checks import check_places
from pipeline.commands.options import (
    ConfigFile,
    InputImages,
    Json,
    ModelName,
    OptionalTruth,
    Resized,
    Seed,
    Settings,
    naming_options,
)
from pipeline.config import load_config
from pipeline.paths import check_writable
from pipeline.terminal import console, errors, print_json


def compare(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Captioned images, as `phrasebox run` takes them. By default drawn scenes, and the eight bundled "
            "photographs where a model for photographs is there.",
        ),
    ] = None,
    truth: OptionalTruth = None,
    explainers: Annotated[
        str | None,
        typer.Option(
            "--explainers",
            metavar="A,B,...",
            help="Kinds with commas between them, each with its settings behind colons: "
            "grad_eclip,maskclip,grad_eclip:heads=single:blocks=1. `all` takes all that the model's tower allows. By "
            "default those that need no perturbed images and on which nobody claims a patent.",
        ),
    ] = None,
    model: ModelName = None,
    images: InputImages = None,
    most: Annotated[int, typer.Option("--most", metavar="N", min=1, help="Images of the sample.")] = 200,
    phrases: Annotated[int, typer.Option("--phrases", metavar="N", min=1, help="Phrases of each image, at most.")] = 8,
    faithful: Annotated[
        int,
        typer.Option(
            "--faithful",
            metavar="N",
            min=0,
            help="Images on which insertion and deletion are measured, with one phrase each: 16 forward passes for "
            "each image and explainer.",
        ),
    ] = 8,
    seed: Seed = 0,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write a page with the maps side by side, in one file."),
    ] = None,
    as_json: Json = False,
    resized: Resized = False,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
) -> None:
    """Measure explainers on the same images and phrases: places, insertion and deletion, sanity, cost.

    Without --truth nothing that needs places is measured.

    Maps are compared as the methods give them: no contrast, no affinity, no blur. Intervals are 95 %, over images. Of a
    configuration the sections input, model, phrases and images are used.

    \b
    phrasebox compare
    phrasebox compare captions.jsonl --images photos/ --truth Entities/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox compare --explainers grad_eclip,attention_gradient,grad_eclip:heads=single:blocks=1 --html maps.html
    """
    if html is not None:
        check_writable("--html", html)
    if data is not None or config is not None:
        options = {"input.path": data, "input.image_root": images, "model.name": model}
        with naming_options():
            check_places(load_config(config, settings, options=options), truth)
    errors.print("loading the model")
    # They import torch and OpenCV.
    from pipeline.research.compare.comparison import check_contenders, compare_explainers, sources_of  # noqa: PLC0415
    from pipeline.research.compare.page import write_page  # noqa: PLC0415
    from pipeline.research.compare.pictures import SampleSize  # noqa: PLC0415
    from pipeline.research.compare.tables import print_comparison  # noqa: PLC0415

    progress = errors if as_json else console
    sample_size = SampleSize(images=most, phrases=phrases, curve_images=faithful, seed=seed)
    with sources_of(data, truth, model, images, config, settings, sample_size, progress) as sources:
        for source in sources:
            check_contenders(source, explainers)
        comparisons = [
            compare_explainers(source, explainers, sample_size, progress, resized=resized) for source in sources
        ]
    if html is not None:
        write_page(comparisons, html)
        progress.print(f"page in {html}", soft_wrap=True)
    if as_json:
        print_json([row for comparison in comparisons for row in comparison.rows])
        return
    for comparison in comparisons:
        print_comparison(comparison.rows, console)
