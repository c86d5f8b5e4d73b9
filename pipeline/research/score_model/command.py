"""Measure what a model knows of regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from phrasebox.pipeline.commands.checks import check_places, check_sections
from phrasebox.pipeline.commands.options import (
    MODEL_ARGUMENT,
    OPTIONS,
    AsJson,
    InputImages,
    OptionalTruth,
    Resized,
    Settings,
    naming_options,
)
from phrasebox.pipeline.commands.tables import format_interval, format_value, make_figure_table
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.evaluate.estimates import Estimate, plain_values
from phrasebox.pipeline.terminal import console, counted, errors, print_json, say
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json

if TYPE_CHECKING:
    from phrasebox.pipeline.research.score_model.job import Scores

SECTIONS: Final = ("input", "model", "images")  # sections of the configuration that scores depend on

KINDS: Final = {
    "regions.roi": "class of a region",
    "described.roi": "colour and class of a region",
    "phrases": "region of a phrase, in its image",
    "phrases_pool": "region of a phrase, in up to 50 images",
    "t2i": "image of a caption",
    "i2t": "caption of an image",
}
"""Kind of question -> words for it."""


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
    from phrasebox.pipeline.research.score_model.job import ScoringJob, compute_scores, read_scores  # noqa: PLC0415
    from phrasebox.pipeline.research.score_model.probe import PROMPTS  # noqa: PLC0415

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


def print_scores(scores: Scores, console: Console) -> None:
    """Print the table for people, with the differences from another model where there is one."""
    counts = scores.counts
    say(
        console,
        f"{scores.model} on {scores.device}: {counted(counts.images, 'image')}, "
        f"{counted(counts.captions, 'caption')}, {counted(counts.boxes, 'region')}, in {scores.seconds:,.0f} s",
    )
    if scores.faults:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in scores.faults.items())
        say(console, f"images cannot be opened and are left out: {reasons}")
        say(console, *(f"  {example}" for example in scores.fault_examples))
    comparison = scores.comparison
    all_differences = {} if comparison is None else comparison.differences
    titles = [] if comparison is None else [f"over {comparison.compared_with}"]
    table = make_figure_table("", ["n", "value", "95 % interval", *titles])
    for column in table.columns:
        column.no_wrap = column is not table.columns[0]
    for kind, figures in scores.figures.items():
        classes = counts.classes.get(kind.partition(".")[0])
        table.add_row(KINDS[kind] if classes is None else f"{KINDS[kind]}, of {classes:,}")
        for name, figure in figures.items():
            differences = (
                [_format_difference(all_differences[kind].get(name))] if kind in all_differences else []
            )
            values = (format_value(figure), format_interval(figure))
            table.add_row("  " + name.replace("_", " "), f"{figure.n:,}", *values, *differences)
    console.print(table)
    if comparison is not None:
        say(console, "differences are paired over images; * is beyond chance")


def _format_difference(gain: Estimate | None) -> str:
    if gain is None:
        return ""
    mark = "" if gain.low <= 0 <= gain.high else " *"
    return f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}){mark}"
