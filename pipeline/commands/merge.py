"""Make one dataset of the parts of an input."""

from __future__ import annotations

from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import naming_options, stopping
from phrasebox.pipeline.output.merge import merge as merge_parts
from phrasebox.pipeline.terminal import console, counted, say, visible


@naming_options({"output.path": "--out"})
def merge(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="PART...", help="Datasets made with phrasebox run --part, all of one whole."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder or URL of the dataset to write.")
    ],
) -> None:
    """Make one dataset of the parts of an input. The parts stay; the same command resumes a merge that was stopped.

    \b
    phrasebox run captions.jsonl --images photos/ --model photo --part 1/2 --out part-1/    on one machine
    phrasebox run captions.jsonl --images photos/ --model photo --part 2/2 --out part-2/    on another
    phrasebox merge part-1/ part-2/ --out out/
    """
    with stopping("stopped. Shards that were copied stay; the same command resumes the merge."):
        total = merge_parts(parts, out)
    if total is None:
        say(console, f"{out} is complete: nothing to do.")
    else:
        rows = counted(total.rows, "row")
        regions = counted(total.regions, "region")
        say(console, f"{out}: {rows} and {regions} in {counted(total.files, 'shard')}")
        if total.doubt is not None:
            say(console, *map(visible, total.doubt.lines()))
