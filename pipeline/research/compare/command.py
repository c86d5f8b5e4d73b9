"""Measure explainers on the same images and phrases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from phrasebox.pipeline.commands.checks import check_places, check_sections
from phrasebox.pipeline.commands.options import (
    OPTIONS,
    AsJson,
    ConfigFile,
    InputImages,
    ModelName,
    OptionalTruth,
    Resized,
    Settings,
    naming_options,
)
from phrasebox.pipeline.config.paths import check_writable
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.terminal import console, errors, print_json, say

SECTIONS: Final = (
    "input",
    "model",
    "phrases",
    "images",
)  # sections of the configuration that maps depend on


ComparedInput = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="Captioned images, as `phrasebox run` takes them; or --config with input.path.",
    ),
]
Explainers = Annotated[
    str | None,
    typer.Option(
        "--explainers",
        metavar="A,B,...",
        help="Kinds with commas between them, each with its settings behind colons: "
        "grad_eclip,maskclip,grad_eclip:heads=single:blocks=1. `all` takes all that the model's tower allows. By "
        "default those that need no perturbed images and on which no one claims a patent.",
    ),
]
MostImages = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Images of the sample.")]
CurveImages = Annotated[
    int,
    typer.Option(
        "--faithful",
        metavar="N",
        min=0,
        help="Also measure insertion and deletion, on N images with one phrase each. They take 8 forward passes for "
        "each map, most of the time of a comparison; some 200 images make them reliable.",
    ),
]
HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE.html", help="Write a page with the maps side by side, in one file."
    ),
]


@naming_options(OPTIONS | {"explainers": "--explainers", "html": "--html"})
def compare(
    data: ComparedInput = None,
    truth: OptionalTruth = None,
    explainers: Explainers = None,
    model: ModelName = None,
    images: InputImages = None,
    most: MostImages = 200,
    faithful: CurveImages = 0,
    html: HtmlFile = None,
    as_json: AsJson = False,
    resized: Resized = False,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
) -> None:
    """Measure explainers on the same images and phrases: places, sanity, cost, and on request insertion and deletion.

    Without --truth nothing that needs places is measured.

    Maps are compared as the methods give them: no contrast, no affinity, no blur. Intervals are 95
    %, over images. Of a configuration the sections input, model, phrases and images are used.

    \b
    phrasebox compare captions.jsonl --images photos/ --truth Entities/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox compare captions.jsonl --images photos/ --model demo --explainers grad_eclip,maskclip --html maps.html
    """
    advice = "; an explainer's settings stand behind its name: --explainers grad_eclip:heads=single"
    check_sections(settings, SECTIONS, advice)
    if html is not None:
        check_writable("--html", html)
    options = {"input.path": data, "input.image_root": images, "model.name": model}
    run_config = load_config(config, settings, options=options)
    check_places(run_config, truth)
    errors.print("loading the model")
    # They import torch and OpenCV.
    from phrasebox.pipeline.research.compare.comparison import compare_explainers  # noqa: PLC0415
    from phrasebox.pipeline.research.compare.page import write_page  # noqa: PLC0415
    from phrasebox.pipeline.research.compare.pictures import Source  # noqa: PLC0415
    from phrasebox.pipeline.research.compare.tables import print_comparison  # noqa: PLC0415

    progress = errors if as_json else console
    source = Source(name=data or str(config), config=run_config, truth=truth, resized=resized, most=most)
    comparison = compare_explainers(source, explainers, progress, curve_images=faithful)
    if html is not None:
        write_page(comparison, html)
        say(progress, f"page in {html}")
    if as_json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison, console)
