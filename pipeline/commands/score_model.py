"""`phrasebox score-model`: how well a CLIP model names regions, finds phrases, and retrieves."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.commands.evaluate import interval, number
from pipeline.commands.options import InputImages, Json, Resized
from pipeline.terminal import console, errors
from stages.contract.errors import ConfigError

USED: Final = ("input", "model", "images")
"""Sections of the configuration that scores depend on."""

FIGURES: Final = {
    "regions": ("top1", "top5", "mean_per_class"),
    "described": ("top1", "top5", "mean_per_class"),
    "phrases": ("recall_1", "recall_5", "mrr", "chance_1"),
}
"""Table -> its figures."""

WAYS: Final = {"roi": "RoI, dense", "mask": "mask, dense", "crop": "crop, embedded"}

SEARCHES: Final = {
    "phrases": "in the image, RoI",
    "phrases_crop": "in the image, crop",
    "phrases_pool": "in many, RoI",
}


def score_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="open_clip's model and its tag of pretrained weights, e.g. ViT-B-16/laion2b_s34b_b88k; demo or photo; "
            "or the folder or file of a checkpoint.",
        ),
    ],
    data: Annotated[
        str, typer.Option("--data", metavar="INPUT", help="Captioned images, as `phrasebox run` takes them.")
    ],
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE|DIR",
            help="Where things are in the images, as `phrasebox eval` takes it. Without, only retrieval is measured.",
        ),
    ] = None,
    images: InputImages = None,
    prompts: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="A sentence for the name of a class, with {} for the name; repeatable, the class is their mean. "
            '"a photo of a {}." by default; {} is the bare name, openai_imagenet stands for OpenAI\'s 80.',
        ),
    ] = [],  # noqa: B006  typer copies it
    residual: Annotated[
        bool,
        typer.Option(
            "--residual/--no-residual",
            help="Whether the last block's residual and MLP follow the values in the dense features, as in CLIPSelf.",
        ),
    ] = False,
    crops: Annotated[
        bool, typer.Option("--crops/--no-crops", help="Whether every region is embedded as an image of its own, too.")
    ] = True,
    crop_scale: Annotated[
        float,
        typer.Option("--crop-scale", metavar="X", min=1.0, max=10.0, help="Sides of a crop, in sides of its box."),
    ] = 1.0,
    min_boxes: Annotated[
        int, typer.Option("--min-boxes", metavar="N", min=1, help="Leave rarer classes out of the mean over classes.")
    ] = 1,
    pool: Annotated[
        int, typer.Option("--pool", metavar="N", min=2, help="Images among whose regions phrases are looked for.")
    ] = 50,
    most: Annotated[
        int | None, typer.Option("--most", metavar="N", min=1, help="Images of the sample; all without it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another seed draws another sample.")] = 0,
    other: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="OTHER.json",
            help="What --json gave for another model on the same images: also tell the differences, paired.",
        ),
    ] = None,
    as_json: Json = False,
    resized: Resized = False,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of input, model or images, as `run` does. Repeatable."
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Measure what a model knows of regions, and whether it still retrieves; before and after it is fine-tuned.

    Regions are named among all classes of the truth, by the dense features in their box and on their mask, and by their
    crop. Phrases are looked for among the regions of their image. Intervals are 95 %, over images.

    \b
    phrasebox score-model ViT-B-16/laion2b_s34b_b88k --data captions.json --images val2017/ --truth instances.json
    phrasebox score-model photo --data captions.jsonl --images photos/ --truth Entities/ --json > before.json
    phrasebox score-model tuned/ --data captions.jsonl --images photos/ --truth Entities/ --compare before.json
    """
    from pipeline.config import check, load_config
    from pipeline.evaluate.model_score import Exam, read_scores, scored
    from pipeline.evaluate.probe.config import ProbeConfig

    unused = [setting for setting in settings if setting.partition(".")[0] not in USED]
    if unused:
        raise ConfigError(f"--set {unused[0]}: only keys of {', '.join(USED)} are used here")
    given: dict[str, Any] = {"input.path": data, "input.image_root": images, "model.name": model}
    config = load_config(None, settings, assigned=given)
    asked: dict[str, Any] = {"residual": residual, "crops": crops, "crop_scale": crop_scale}
    asked |= {"min_boxes": min_boxes, "pool_images": pool}
    if prompts:
        asked["prompts"] = prompts[0] if prompts == ["openai_imagenet"] else prompts
    probe: ProbeConfig = check(asked, ProbeConfig)
    theirs = None if other is None else read_scores(other)
    exam = Exam(config=config, truth=truth, resized=resized, most=most, seed=seed, probe=probe)
    scores = scored(exam, errors if as_json else console, theirs)
    if as_json:
        sys.stdout.write(json.dumps(scores) + "\n")
    else:
        print_scores(scores, console)


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """The tables for people; with the differences from another model where there is one."""
    counts = scores["counts"]
    console.print(
        f"{scores['model']} on {scores['device']}: {counts['images']:,} images, {counts['captions']:,} captions, "
        f"{counts['boxes']:,} regions, in {scores['seconds']:,.0f} s",
        soft_wrap=True,
    )
    if counts["failed"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in scores["faults"].items())
        console.print(f"{counts['failed']:,} images cannot be opened and are left out: {reasons}", soft_wrap=True)
        for example in scores["fault_examples"]:
            console.print(f"  {example}", soft_wrap=True)
    theirs = scores.get("differences", {})
    for key in ("regions", "described"):
        if scores[key]:
            what = "classes" if key == "regions" else "colours and classes"
            table = _table(f"Regions, named among {counts['classes'][key]:,} {what}", FIGURES[key])
            for way, figures in scores[key].items():
                _add(table, WAYS[way], FIGURES[key], figures, theirs.get(key, {}).get(way))
            console.print(table)
    _print_rare(scores, console)
    shown = [name for name in SEARCHES if name in scores]
    if shown:
        table = _table("Phrases: is the first region the right one?", FIGURES["phrases"])
        for name in shown:
            _add(table, SEARCHES[name], FIGURES["phrases"], scores[name], theirs.get(name))
        console.print(table)
    if scores["retrieval"]:
        table = _table("Retrieval", ("r1", "r5", "r10"))
        for direction, title in (("t2i", "image of a caption"), ("i2t", "caption of an image")):
            own = _direction(scores["retrieval"], direction)
            _add(table, title, ("r1", "r5", "r10"), own, _direction(theirs.get("retrieval", {}), direction))
        console.print(table)
    if theirs:
        console.print(
            f"below each: the difference from {scores['compared_with']}, paired over images; * is beyond chance",
            soft_wrap=True,
        )
        if scores["asked_differently"]:
            console.print(f"which was asked differently: {'; '.join(scores['asked_differently'])}", soft_wrap=True)


def _print_rare(scores: Mapping[str, Any], console: Console) -> None:
    """Say how far the mean over classes stands on classes with few regions."""
    least = scores["probe"]["min_boxes"]
    for classes in list(scores["classes"].values())[:1]:
        rare = sum(1 for each in classes.values() if each["n"] < max(10, least))
        left = sum(1 for each in classes.values() if each["n"] < least)
        if rare:
            tail = f"; {left:,} with fewer than {least} are left out of the mean over classes" if left else ""
            console.print(
                f"{rare:,} of {len(classes):,} classes that occur have fewer than {max(10, least)} regions{tail}",
                soft_wrap=True,
            )


def _table(title: str, figures: tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for figure in figures:
        table.add_column(figure.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    return table


def _add(
    table: Table,
    title: str,
    shown: tuple[str, ...],
    figures: Mapping[str, Any],
    theirs: Mapping[str, Any] | None,
) -> None:
    """A row of figures, with the differences from `theirs` below them."""
    if not figures:
        return
    cells = [_cell(figures.get(name)) for name in shown]
    if theirs:
        cells = [f"{cell}\n{_difference(theirs.get(name))}" for name, cell in zip(shown, cells, strict=True)]
    table.add_row(title, *cells, f"{figures['n']:,}")


def _direction(retrieval: Mapping[str, Any], direction: str) -> dict[str, Any]:
    """The figures of one direction, by their names alone."""
    start = f"{direction}_"
    return {name.removeprefix(start): figure for name, figure in retrieval.items() if name.startswith(start)}


def _cell(figure: Mapping[str, Any] | None) -> str:
    """A value and, below it, its interval."""
    return "-" if figure is None or figure["value"] is None else f"{number(figure)}\n{interval(figure)}"


def _difference(figure: Mapping[str, Any] | None) -> str:
    """A difference with its interval, marked where that does not hold 0."""
    if figure is None or figure["value"] is None:
        return ""
    sign = "" if figure["low"] <= 0 <= figure["high"] else " *"
    return f"{figure['value']:+.3f}{sign}\n{figure['low']:+.3f} {figure['high']:+.3f}"
