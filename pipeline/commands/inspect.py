"""Look at a dataset in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import (
    CHOICE_OPTIONS,
    OPTIONS,
    AnyDataset,
    DatasetSettings,
    ImageRoot,
    Keep,
    MaxArea,
    MinScore,
    Precision,
    Seed,
    Where,
    naming_options,
    stopping,
)
from phrasebox.pipeline.config.run_config import REPLACES
from phrasebox.pipeline.dataset.folder import open_any_dataset
from phrasebox.pipeline.dataset.score_choice import RegionChoice
from phrasebox.pipeline.dataset.selection import Search
from phrasebox.pipeline.terminal import console
from phrasebox.pipeline.viewer.app import Viewer, serve
from phrasebox.pipeline.viewer.review import REGIONS
from phrasebox.stages.contract.errors import ConfigError

Host = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Address to listen on. By default only this machine can look; there is no password.",
    ),
]
Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free port.")]
OpenBrowser = Annotated[bool, typer.Option("--open", help="Also open the browser.")]
Review = Annotated[
    bool,
    typer.Option(
        "--review",
        help="Open with the review: people say of one region after another if it is right, and drag the box of a "
        "wrong one (m).",
    ),
]
AnswerCount = Annotated[
    int | None,
    typer.Option(
        "--answers",
        metavar="N",
        min=1,
        max=5000,
        help="Review N regions of the dataset. [default: 200]",
    ),
]
DatasetModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[/TAG]|PATH",
        help="The model that the dataset was made with. Heat maps of a dataset that you did not make on "
        "this machine are only computed with bundled models and with models that you name.",
    ),
]


@naming_options(OPTIONS | {"host": "--host", "port": "--port"})
def inspect(
    dataset: AnyDataset,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    open_browser: OpenBrowser = False,
    review: Review = False,
    answers: AnswerCount = None,
    seed: Seed = 0,
    where: Where = "",
    min_score: MinScore = 0.0,
    precision: Precision = None,
    keep: Keep = None,
    max_area: MaxArea = 1.0,
    image_root: ImageRoot = None,
    model: DatasetModel = None,
    settings: DatasetSettings = [],  # noqa: B006  typer copies it
) -> None:
    """Look at a dataset in the browser: pictures with regions, filters, figures, marks, review.

    \b
    phrasebox inspect out/
    phrasebox inspect out/ --where "head = 'dog'" --precision 0.7 --open
    phrasebox inspect out/ --review
    """
    choice = RegionChoice(
        min_score=min_score, precision=precision, keep=keep, max_area=max_area, where=where
    )
    if (review or answers) and choice != RegionChoice():
        raise ConfigError(f"it draws from all regions; leave {CHOICE_OPTIONS} out", key="--review")
    if model is not None:
        settings = [
            *(f"{key}=null" for key in REPLACES["model.name"]),
            f"model.name={model}",
            *settings,
        ]
    with stopping(""):
        selection = open_any_dataset(dataset).selection(choice)
        if selection.threshold is not None:
            console.print(selection.threshold.in_words())
        regions = answers or REGIONS if review or answers else None
        viewer = Viewer(dataset, image_root, settings, review=regions, seed=seed)
        search = Search(where=selection.where, score_min=selection.min_score or None, seed=seed)
        serve(viewer, console, search, host=host, port=port, open_browser=open_browser)
