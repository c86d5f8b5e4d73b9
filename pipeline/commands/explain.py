"""`phrasebox explain`: heat maps of phrases in one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.commands.options import ModelName, Settings
from pipeline.terminal import console
from stages.contract.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    phrase: Annotated[list[str], typer.Option("--phrase", metavar="TEXT", help="What to look for. Repeatable.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE.npz", help="NumPy file to write: arrays maps, scores and phrases."),
    ],
    model: ModelName = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.yaml",
            help="Configuration in YAML, of which the sections model, images and explain are used.",
        ),
    ] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE.png", help="Picture of the maps over the image to write.")
    ] = None,
    versus: Annotated[
        list[str],
        typer.Option("--versus", metavar="KEY=VALUE", help="Compute again with this key set and compare. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Compute heat maps of phrases in one image, as arrays and as a picture.

    \b
    phrasebox explain image.jpg --phrase "red car" --phrase dog --out maps.npz --overlay maps.png
    phrasebox explain image.jpg --phrase "red car" --out maps.npz --model ViT-B-16/laion2b_s34b_b88k
    """
    import numpy as np
    from PIL import Image

    from pipeline.config import ExplainConfig, load_config
    from pipeline.notebook import Locator
    from stages.storage import check_writable

    phrases = list(dict.fromkeys(" ".join(each.split()) for each in phrase))
    if not all(phrases):
        raise ConfigError("--phrase: expected words, got nothing")
    check_writable("--out", out)
    if overlay is not None:
        check_writable("--overlay", overlay)
        if overlay.suffix.lower() not in Image.registered_extensions():
            raise ConfigError(f"--overlay: {overlay} does not end like a picture, for example in .png")
    named = {} if model is None else dict.fromkeys(("model.pretrained", "model.checkpoint")) | {"model.name": model}
    found = Locator(run=load_config(config, settings, ExplainConfig, assigned=named))(image, phrases)
    arrays = {"maps": found.heat_maps, "scores": found.similarities, "phrases": np.array(phrases)}
    pictures = [np.asarray(found.heat_picture())]
    table = Table("phrase", "cosine", "peak x, y (0 .. 1)", title=image.name, title_justify="left")
    cells = [
        [text, f"{similarity:.3f}", fault or _peak(values, found.shift_cells)]
        for text, similarity, fault, values in zip(
            phrases, found.similarities, found.faults, found.heat_maps, strict=True
        )
    ]
    if versus:
        changed = load_config(config, [*settings, *versus], ExplainConfig, assigned=named)
        other = Locator(run=changed)(image, phrases)
        arrays |= {"versus_maps": other.heat_maps, "versus_scores": other.similarities}
        pictures.append(np.asarray(other.heat_picture(title=", ".join(versus))))
        table.add_column(f"correlation with {', '.join(versus)}")
        both = zip(found.heat_maps, other.heat_maps, strict=True)
        cells = [[*row, _correlation(*maps)] for row, maps in zip(cells, both, strict=True)]
    for row in cells:
        table.add_row(*row)
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own arguments
    console.print(f"maps in {out}", soft_wrap=True)
    if overlay is not None:
        overlay.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(pictures)).save(overlay)
        console.print(f"picture in {overlay}", soft_wrap=True)


def _peak(values: NDArray[np.float32], shift_cells: float) -> str:
    """Where a map is hottest, as shares of the image's width and height."""
    height, width = values.shape
    y, x = divmod(int(values.argmax()), width)
    return f"{(x + 0.5 + shift_cells) / width:.2f}, {(y + 0.5 + shift_cells) / height:.2f}"


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> str:
    import numpy as np

    if a.shape != b.shape or a.std() == 0 or b.std() == 0:
        return "-"
    return f"{np.corrcoef(a.ravel(), b.ravel())[0, 1]:.4f}"
