"""Compute heat maps of phrases in one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image
from rich.table import Table

from phrasebox.pipeline.commands.options import ModelName, Settings, naming_options, reading
from phrasebox.pipeline.config.paths import check_writable
from phrasebox.pipeline.config.run_config import ExplainCommandConfig, load_config
from phrasebox.pipeline.terminal import console, say
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Floats32, Json
from phrasebox.stages.model.config import check_model_files

if TYPE_CHECKING:
    from phrasebox.pipeline.locator import Locator


@naming_options()
def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    phrase: Annotated[
        list[str],
        typer.Option(
            "--phrase",
            metavar="TEXT",
            help="What to look for; leading articles do not count, but with explain.variant=authors. Repeatable.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.npz",
            help="NumPy file to write: arrays maps (phrases, rows, columns), scores (cosines) and phrases.",
        ),
    ] = None,
    model: ModelName = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    overlay: Annotated[
        Path | None,
        typer.Option("--overlay", metavar="FILE.png", help="Picture of the maps over the image to write."),
    ] = None,
) -> None:
    """Compute heat maps of phrases in one image, as arrays and as a picture.

    \b
    phrasebox explain image.jpg --phrase "red car" --phrase dog --out maps.npz --overlay maps.png
    phrasebox explain image.jpg --phrase "red car" --out maps.npz --model ViT-B-16/laion2b_s34b_b88k
    """
    phrases = list(dict.fromkeys(" ".join(text.split()) for text in phrase))
    if not all(phrases):
        raise ConfigError("expected words, got nothing", key="--phrase")
    if out is not None:
        check_writable("--out", out)
    if overlay is not None:
        check_writable("--overlay", overlay)
        if overlay.suffix.lower() not in Image.registered_extensions():
            raise ConfigError(
                f"{overlay} does not end like a picture, for example in .png", key="--overlay"
            )
    run_config = load_config(None, settings, ExplainCommandConfig, options={"model.name": model})
    check_model_files(run_config.model)
    with reading(str(image)), image.open("rb"):
        pass
    # It imports torch.
    from phrasebox.pipeline.locator import Locator  # noqa: PLC0415

    arrays = _explain_phrases(Locator(run=run_config), image, phrases, overlay)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("wb") as file:
            np.savez(file, **arrays)
        say(console, f"maps in {out}")


def _explain_phrases(locator: Locator, image: Path, phrases: list[str], overlay: Path | None) -> Json:
    """Print the table of phrases, write the picture, and return the arrays."""
    located = locator(image, phrases)
    table = Table("phrase", "cosine", "peak x, y (0 .. 1)", title=image.name, title_justify="left")
    columns = zip(phrases, located.similarities, located.faults, located.heat_maps, strict=True)
    for text, similarity, fault, values in columns:
        table.add_row(text, f"{similarity:.3f}", fault or _peak(values, located.shift_cells))
    console.print(table)
    if overlay is not None:
        overlay.parent.mkdir(parents=True, exist_ok=True)
        located.heat_picture().save(overlay)
        say(console, f"picture in {overlay}")
    return {"maps": located.heat_maps, "scores": located.similarities, "phrases": np.array(phrases)}


def _peak(values: Floats32, shift_cells: float) -> str:
    height, width = values.shape
    y, x = divmod(int(values.argmax()), width)
    return f"{(x + 0.5 + shift_cells) / width:.2f}, {(y + 0.5 + shift_cells) / height:.2f}"
