"""The steps of `make figures`. Each returns tables and figures for pages; finished parts are not made again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.figures.absent import absent
from benchmarks.figures.drawings import drawings
from benchmarks.figures.explainers import explainers
from benchmarks.figures.pages import ROOT, Pages, put, table
from benchmarks.figures.photographs import photographs
from benchmarks.figures.rounds import rounds
from benchmarks.figures.settings import settings
from benchmarks.figures.sources import sources
from benchmarks.figures.speed import called, scale, speed
from benchmarks.photos.measure import Photographs, console
from benchmarks.photos.reviews import reviewed


def reviews(photos: Photographs) -> Pages:
    """How many answers of people make scores probabilities."""
    command = "python -m benchmarks.figures --only reviews"
    return {
        "reviews": {"tables": [table(command=command, **each) for each in reviewed(photos)], "said": []}
    }


def proof(photos: Photographs) -> Pages:
    """Models that learned from the regions of several sources: `configs/proof`."""
    tables, sentences = list[dict[str, Any]](), list[dict[str, Any]]()
    for plan in ("scenes", "photos"):
        out, program = (
            photos.out / f"proof-{plan}",
            ("-m", "benchmarks.proof.prove", f"configs/proof/{plan}.yaml"),
        )
        called(*program, "--out", str(out), "--photos", str(photos.source / "flickr8k"))
        made, command = (
            json.loads((out / "tables.json").read_text("utf-8")),
            f"python {' '.join(program)} --photos DIR",
        )
        tables += (table(command=command, **each) for each in made["tables"])
        sentences += ({**each, "command": command} for each in made["said"])
    return {"proof": {"tables": tables, "said": sentences}}


STEPS: Final[dict[str, Callable[[Photographs], Pages]]] = {
    each.__name__: each
    for each in (
        drawings,
        photographs,
        absent,
        settings,
        sources,
        explainers,
        reviews,
        proof,
        rounds,
        speed,
        scale,
    )
}


def commit() -> str:
    """Return the commit that the code is of, with a + if files differ from it."""
    hash_and_changes = [
        subprocess.run(["git", *call], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for call in (
            ["rev-parse", "--short", "HEAD"],
            ["status", "--porcelain", "pipeline", "stages", "tests"],
        )
    ]
    return hash_and_changes[0] + "+" * bool(hash_and_changes[1])


def make(photographs: Photographs, only: Sequence[str]) -> None:
    """Make the figures of all steps, or of those that are named, and write them beside the pages.

    A step that is finished is not repeated: `OUT/steps/NAME.json` holds what it made.
    """
    for name in only or STEPS:
        done = photographs.out / "steps" / f"{name}.json"
        if done.is_file():
            console.print(f"{name} is finished; remove {done} to make it again", soft_wrap=True)
            continue
        origin = {"step": name, "commit": commit()}
        pages = STEPS[name](photographs)
        for page, parts in pages.items():
            for entry in (*parts["tables"], *parts["said"]):
                entry.update(origin)
            put(page, tables=parts["tables"], sentences=parts["said"])
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text(json.dumps(pages), encoding="utf-8")
