"""Fetch captioned photographs with boxes, to measure and calibrate a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from phrasebox.pipeline.commands.options import Seed
from phrasebox.pipeline.demo.coco2017 import MIRROR, PhotographRequest, Split, fetch_photographs
from phrasebox.pipeline.terminal import console, counted, errors, say


def photographs(
    name: Annotated[
        Literal["coco2017"], typer.Argument(metavar="NAME", help="coco2017, the only one so far.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="How many photographs.")
    ] = 500,
    split: Annotated[
        Split, typer.Option("--split", help="The part of COCO: 5,000 photographs, or 118,287.")
    ] = "val2017",
    seed: Seed = 0,
    mirror: Annotated[
        str, typer.Option("--mirror", metavar="URL", help="A server with the layout of COCO's own.")
    ] = MIRROR,
) -> None:
    """Fetch captioned photographs with boxes: images/, captions.jsonl, truth.json, and their licences.

    The annotations are 253 MB, and a photograph has some 160 kB. The same command goes on where it was interrupted.

    \b
    phrasebox photographs coco2017 --images 500 --out coco/
    phrasebox run coco/captions.jsonl --images coco/images/ --model my-clip/ --out out/
    phrasebox calibrate out/ --truth coco/truth.json --out mine.json
    """
    request = PhotographRequest(images=images, split=split, seed=seed, mirror=mirror)
    count = fetch_photographs(out, request, errors)
    say(
        console,
        f"{counted(count, 'photograph')} of {name} in {out}: images/, captions.jsonl, truth.json",
    )
