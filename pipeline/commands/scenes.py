"""Draw scenes with captions and exact ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phrasebox.pipeline.commands.options import Scenes, Seed
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.terminal import console, counted, say
from phrasebox.stages.contract.errors import ConfigError


def scenes(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    scenes: Scenes = 100,
    seed: Seed = 0,
) -> None:
    """Draw synthetic scenes with captions and exact ground truth: images/, captions.jsonl, truth.json.

    \b
    phrasebox scenes --out scenes/ --scenes 100
    phrasebox run scenes/captions.jsonl --images scenes/images/ --model demo --out out/
    """
    try:
        write_scenes(out, scenes, seed)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", key="--out") from error
    say(console, f"{counted(scenes, 'scene')} in {out}: images/, captions.jsonl, truth.json")
