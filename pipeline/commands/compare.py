"""`phrasebox compare`: explainers side by side on the same pictures."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.commands.options import InputImages, Json, ModelName, Resized
from pipeline.terminal import console, errors
from stages.contract.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.evaluate.compare.comparison import Comparison, Effort, Source

USED: Final = ("input", "model", "phrases", "images")
"""Sections of the configuration that a comparison depends on."""

TABLES: Final = {
    "where": (
        "pointing",
        "pointing_off_centre",
        "energy",
        "box_recall",
        "box_recall_otsu",
        "mask_iou",
        "mask_iou_otsu",
    ),
    "why": ("deletion_rise", "insertion_rise", "deletion_authors", "insertion_authors"),
    "sane": ("weights_head", "weights_all", "phrase_swapped", "same_thing", "other_thing"),
}
"""Table -> figures that it shows; the JSON has all of them."""


def compare(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Captioned images, as `phrasebox run` takes them. Without: drawn scenes, and the eight photographs "
            "that come with phrasebox where a model for photographs is there.",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE|DIR",
            help="Where things are in the images, as `phrasebox eval` takes it. Without, nothing is told of places.",
        ),
    ] = None,
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
            help="Images of which insertion and deletion are measured, with one phrase each: 16 forward passes for "
            "each image and explainer.",
        ),
    ] = 8,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another seed draws another sample.")] = 0,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write a page with the maps side by side, in one file."),
    ] = None,
    as_json: Json = False,
    resized: Resized = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.yaml",
            help="Configuration in YAML, of which the sections input, model, phrases and images are used.",
        ),
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of input, model, phrases or images, as `run` does. Repeatable.",
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Measure explainers on the same images and phrases: places, insertion and deletion, sanity, cost.

    Maps are compared as the methods give them: no contrast, no affinity, no blur. Intervals are 95 %, over images.

    \b
    phrasebox compare
    phrasebox compare captions.jsonl --images photos/ --truth Entities/ --model ViT-B-16/laion2b_s34b_b88k
    phrasebox compare --explainers grad_eclip,attention_gradient,grad_eclip:heads=single:blocks=1 --html maps.html
    """
    from pipeline.evaluate.compare.comparison import Effort, compared, refuse_unknown

    if html is not None:
        from stages.shared.storage import check_writable

        check_writable("--html", html)
    said = errors if as_json else console
    effort = Effort(most=most, phrases=phrases, faithful=faithful, seed=seed)
    found: list[Comparison] = []
    with _sources(data, truth, model, images, config, settings, effort, said) as sources:
        refuse_unknown([source.config for source in sources], explainers)
        for source in sources:
            found.append(compared(source, explainers, effort, said, resized=resized))
    rows = [row for comparison in found for row in comparison.rows]
    if html is not None:
        from pipeline.evaluate.compare.page import write_page

        write_page(found, html)
        said.print(f"page in {html}", soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    for comparison in found:
        print_comparison(comparison.rows, console)


@contextmanager
def _sources(
    data: str | None,
    truth: Path | None,
    model: str | None,
    images: str | None,
    config: Path | None,
    settings: Sequence[str],
    effort: Effort,
    said: Console,
) -> Iterator[list[Source]]:
    """What is compared on: the user's images, or what comes with phrasebox. Drawn scenes are deleted afterwards."""
    from pipeline.config import load_config
    from pipeline.evaluate.compare.comparison import Source

    unused = [setting for setting in settings if setting.partition(".")[0] not in USED]
    if unused:
        raise ConfigError(
            f"--set {unused[0]}: only keys of {', '.join(USED)} are used here; an explainer's settings stand behind "
            "its name: --explainers grad_eclip:heads=single"
        )

    named = {} if model is None else {"model.name": model}

    def source(name: str, given: Mapping[str, Any], truth: Path | None) -> Source:
        resolved: RunConfig = load_config(config, settings, assigned={**given, **named})
        return Source(name=name, config=resolved, truth=truth)

    if data is not None or config is not None:
        yield [source(data or str(config), {"input.path": data, "input.image_root": images}, truth)]
        return
    for option, value in (("--truth", truth), ("--images", images)):
        if value is not None:
            raise ConfigError(f"{option}: it belongs to images of your own: phrasebox compare DATA {option} {value}")
    with tempfile.TemporaryDirectory(prefix="phrasebox-compare-") as folder:
        yield [
            *_scenes(Path(folder), effort, source),
            *_photographs(said, source, known=model is not None),
        ]


def _scenes(folder: Path, effort: Effort, source: Callable[..., Source]) -> Iterator[Source]:
    """Drawn scenes, as many as are wanted; by the embedded model unless another one is named."""
    from pipeline.scenes import write_scenes

    write_scenes(folder, effort.most, effort.seed)
    given = {
        "model.name": "demo",
        "input.kind": "jsonl",
        "input.path": str(folder / "captions.jsonl"),
        "input.image_root": str(folder / "images"),
    }
    yield source("drawn scenes", given, folder / "truth.json")


def _photographs(said: Console, source: Callable[..., Source], *, known: bool) -> Iterator[Source]:
    """The photographs that come with phrasebox, where the model for photographs is there or another one is named."""
    from pipeline.commands.demo import PHOTO_MODEL
    from pipeline.photographs import INPUT, TRUTH
    from stages.shared.model.catalog import CATALOG, resolve

    if not known:
        try:
            if PHOTO_MODEL not in CATALOG:
                raise WeightsError(f"their model, {PHOTO_MODEL}, is not there")
            resolve(PHOTO_MODEL)
        except WeightsError as error:
            said.print(f"the eight photographs are left out: {error}", soft_wrap=True)
            return
    given = {f"input.{key}": value for key, value in INPUT.items()}
    yield source("eight photographs", {"model.name": PHOTO_MODEL, **given}, TRUTH)


def print_comparison(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The tables for people. A value that differs from Grad-ECLIP's by more than chance has a + or -."""
    from pipeline.evaluate.compare.figures import FIGURES

    counts, first = rows[0]["counts"], rows[0]
    console.print(
        f"{first['pictures']}: {counts['images']:,} images, {counts['phrases']:,} phrases, "
        f"{counts['placed']:,} of them with a known place; model {first['model']} on {first['device']}",
        soft_wrap=True,
    )
    titles = {
        "where": "Where: does the heat lie on the thing?",
        "why": f"Why: areas under the curves of {counts['curves']} phrases",
        "sane": f"Sane: do maps follow weights ({counts['sanity']} images) and phrases?",
    }
    for name, figures in TABLES.items():
        shown = [figure for figure in figures if any(figure in row["figures"] for row in rows)]
        if not shown:
            continue
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=titles[name], title_justify="left")
        table.add_column("", no_wrap=True)
        for figure in shown:
            table.add_column(FIGURES[figure].title, justify="right")
        for row in rows:
            if any(figure in row["figures"] for figure in shown):
                label = f"({row['explainer']})" if row["baseline"] else row["explainer"]
                table.add_row(label, *(_cell(row, figure) for figure in shown))
        console.print(table)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Cost, and what was explained", title_justify="left")
    table.add_column("", no_wrap=True)
    for title in ("x encode_image", "ms an image", "cosine r", "cosine differs by", "failed maps"):
        table.add_column(title, justify="right")
    for row in rows:
        if not row["baseline"]:
            cost, agreement = row["cost"], row["cosine_agreement"]
            table.add_row(
                row["explainer"],
                f"{cost['encode_image']:.2f}",
                f"{1000 * cost['seconds']:,.0f}",
                "-" if agreement["correlation"] is None else f"{agreement['correlation']:.4f}",
                f"{agreement['mean_distance']:.4f}",
                f"{row['failed_maps']:,}",
            )
    console.print(table)
    console.print(
        "+ and -: higher or lower than grad_eclip by more than chance (95 %, paired, over 8 or more images). Deletion, "
        "shuffled weights and other phrases: lower is better. (centre) and (random) are baselines without a model",
        soft_wrap=True,
    )


def _cell(row: Mapping[str, Any], figure: str) -> str:
    """A value, and whether it is above or below that of Grad-ECLIP."""
    found = row["figures"].get(figure)
    if found is None:
        return "-"
    difference = (row["differences"] or {}).get(figure)
    sign = " "
    if difference is not None and difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]:
        sign = "+" if difference["low"] > 0 else "-"
    return f"{found['value']:.3f}{sign}"
