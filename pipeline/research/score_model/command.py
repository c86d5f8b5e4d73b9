"""Measure what a model knows of regions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from pipeline.commands.checks import check_places, check_sections
from pipeline.commands.options import (
    MODEL_ARGUMENT,
    OPTIONS,
    AsJson,
    InputImages,
    OptionalTruth,
    Resized,
    Settings,
    naming_options,
)
from pipeline.config import load_config
from pipeline.evaluate.estimates import plain_values
from pipeline.research.score_model.tables import print_scores
from pipeline.terminal import console, errors, print_json
from stages.contract.errors import ConfigError
from stages.contract.values import Json

SECTIONS: Final = ("input", "model", "images")  # sections of the configuration that scores depend on


ScoredModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="open_clip's model and its tag of pretrained weights, e.g. ViT-B-16/laion2b_s34b_b88k; demo or photo; "
        "or the folder or file of a checkpoint.",
    ),
]
ScoredInput = Annotated[
    str, typer.Option("--data", metavar="INPUT", help="Captioned images, as `phrasebox run` takes them.")
]
Prompts = Annotated[
    list[str],
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="A sentence for the name of a class, with {} for the name; repeatable, the class is their mean. "
        '"a photo of a {}." by default; {} is the bare name.',
    ),
]
MostImages = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Only the first N images of the input (input.limit)."),
]
OtherScores = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="OTHER.json",
        help="What --json gave for another model on the same images: also report the differences, paired.",
    ),
]
FrozenOutputs = Annotated[
    Path | None,
    typer.Option(
        "--frozen-outputs",
        metavar="DIR",
        help="Folder of finetune's frozen_outputs, where the outputs of networks that stayed as they were are.",
    ),
]


@naming_options(
    {
        **OPTIONS,
        **MODEL_ARGUMENT,
        "input.path": "--data",
        "prompts": "--prompt",
        "compare": "--compare",
        "frozen_outputs": "--frozen-outputs",
    }
)
def score_model(
    model: ScoredModel,
    data: ScoredInput,
    truth: OptionalTruth = None,
    images: InputImages = None,
    prompts: Prompts = [],  # noqa: B006  typer copies it
    most: MostImages = None,
    other: OtherScores = None,
    outputs: FrozenOutputs = None,
    as_json: AsJson = False,
    resized: Resized = False,
    settings: Settings = [],  # noqa: B006  typer copies it
) -> None:
    """Measure how well a model knows regions, and whether it still retrieves; before and after it is fine-tuned.

    Regions are named among all classes of the ground truth, by the dense features in their box.
    Phrases are looked for among the regions of their image. Without --truth only retrieval is
    measured. Intervals are 95 %, over images.

    \b
    phrasebox score-model ViT-B-16/laion2b_s34b_b88k --data captions.json --images val2017/ --truth instances.json
    phrasebox score-model photo --data captions.jsonl --images photos/ --truth Entities/ --json > before.json
    phrasebox score-model tuned/ --data captions.jsonl --images photos/ --truth Entities/ --compare before.json
    """
    check_sections(settings, SECTIONS)
    options: Json = {
        "input.path": data,
        "input.image_root": images,
        "input.limit": most,
        "model.name": model,
    }
    config = load_config(None, settings, options=options)
    check_places(config, truth)
    # They import torch and OpenCV.
    from pipeline.research.score_model.job import ScoringJob, compute_scores, read_scores  # noqa: PLC0415
    from pipeline.research.score_model.probe import PROMPTS  # noqa: PLC0415

    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ConfigError(f"expected one {{}} in a prompt, got {prompt!r}", key="prompts")
    other_scores = None if other is None else read_scores(other)
    job = ScoringJob(
        config=config, truth=truth, resized=resized, prompts=prompts or PROMPTS, outputs=outputs
    )
    scores = compute_scores(job, errors if as_json else console, other_scores)
    if as_json:
        print_json(plain_values(scores), indent=None)
    else:
        print_scores(scores, console)
