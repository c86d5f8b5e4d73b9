"""`phrasebox explain`: heat maps of phrases in one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from pipeline.commands.options import Settings
from pipeline.console import console
from stages.contract.errors import ConfigError, InputError, RowFault
from stages.contract.records import HeatMap
from stages.storage import check_writable

if TYPE_CHECKING:
    from pipeline.config import ExplainConfig


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    phrase: Annotated[list[str], typer.Option("--phrase", metavar="TEXT", help="What to look for. Repeatable.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.npz", help="NumPy file to write: arrays maps, scores, phrases.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.yaml",
            help="Configuration, of which model, images and explain count; without it the defaults and --set hold.",
        ),
    ] = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE.png", help="Picture to write: the maps over the image.")
    ] = None,
    versus: Annotated[
        list[str],
        typer.Option("--versus", metavar="KEY=VALUE", help="Compute again with this key set and compare. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Compute heat maps of phrases in one image, as arrays and as a picture.

    \b
    phrasebox explain image.jpg --phrase "red car" --phrase dog --out maps.npz --overlay maps.png
    """
    from pipeline.config import ExplainConfig, load_config

    phrases = list(dict.fromkeys(" ".join(each.split()) for each in phrase))
    if not all(phrases):
        raise ConfigError("--phrase: expected words, got nothing")
    check_writable("--out", out)
    if overlay is not None:
        check_writable("--overlay", overlay)
        if overlay.suffix.lower() not in Image.registered_extensions():
            raise ConfigError(f"--overlay: {overlay} does not end like a picture, for example in .png")
    try:
        content = image.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {image}: {error.strerror}") from error
    resolved = load_config(config, settings, ExplainConfig)
    maps = _heat_maps(content, image, phrases, resolved)
    arrays: dict[str, Any] = {"maps": _stack(maps), "scores": _scores(maps), "phrases": np.array(phrases)}
    table = Table("phrase", "cosine", "peak x, y (0 .. 1)", title=f"{image.name}", title_justify="left")
    rows = [("", maps)]
    if versus:
        other = _heat_maps(content, image, phrases, load_config(config, [*settings, *versus], ExplainConfig))
        arrays |= {"versus_maps": _stack(other), "versus_scores": _scores(other)}
        rows.append((", ".join(versus), other))
        table.add_column(f"correlation with {', '.join(versus)}")
    for number, heat_map in enumerate(maps):
        cells = [heat_map.text, f"{heat_map.similarity:.3f}", heat_map.fault or _peak(heat_map)]
        if versus:
            cells.append(_correlation(heat_map, rows[1][1][number]))
        table.add_row(*cells)
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez(file, **arrays)
    console.print(f"maps in {out}", soft_wrap=True)
    if overlay is not None:
        overlay.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(content, rows)).save(overlay)
        console.print(f"picture in {overlay}", soft_wrap=True)


def _heat_maps(content: bytes, image: Path, phrases: Sequence[str], config: ExplainConfig) -> list[HeatMap]:
    from stages.explain import explainer_type
    from stages.explain.contrast import contrasted
    from stages.images.decode import DecodeLimits, decode_resized
    from stages.model.open_clip import describe, load
    from stages.prepare.stage import Config as PrepareConfig
    from stages.prepare.stage import target_size_px

    spec = describe(config.model).input
    prepare = PrepareConfig(**config.images.model_dump(), **config.explain.canvas(spec))
    limits = DecodeLimits(max_pixels=prepare.max_pixels, max_bytes=prepare.max_bytes)
    try:
        pixels = decode_resized(
            content, limits, lambda w, h: target_size_px(prepare, w, h), interpolation=prepare.interpolation
        )
    except RowFault as fault:
        raise InputError(f"{image}: {fault}") from fault
    model = load(config.model)
    explainer = explainer_type(config.explain.kind)(config.explain, model)
    maps = explainer.explain(pixels.rgb[None], [phrases])[0]
    return contrasted(maps, config.explain.contrast)


def _stack(maps: Sequence[HeatMap]) -> NDArray[np.float32]:
    return np.stack([heat_map.values for heat_map in maps])


def _scores(maps: Sequence[HeatMap]) -> NDArray[np.float32]:
    return np.array([heat_map.similarity for heat_map in maps], np.float32)


def _peak(heat_map: HeatMap) -> str:
    y, x = np.unravel_index(int(heat_map.values.argmax()), heat_map.values.shape)
    height, width = heat_map.values.shape
    return f"{(x + 0.5) / width:.2f}, {(y + 0.5) / height:.2f}"


def _correlation(a: HeatMap, b: HeatMap) -> str:
    if a.values.shape != b.values.shape or a.values.std() == 0 or b.values.std() == 0:
        return "-"
    return f"{np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1]:.4f}"


def _picture(content: bytes, rows: Sequence[tuple[str, Sequence[HeatMap]]]) -> NDArray[np.uint8]:
    """One picture a phrase, and a line of pictures for each set of settings."""
    from stages.images.decode import DecodeLimits, decode_resized
    from stages.images.pictures import heat_map_overlay, row

    shown_px = 360

    def size(width: int, height: int) -> tuple[int, int]:
        scale = shown_px / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    rgb = decode_resized(content, DecodeLimits(), size).rgb
    lines = [
        row(
            [heat_map_overlay(rgb, heat_map) for heat_map in maps],
            [f"{heat_map.text} {title}".strip() for heat_map in maps],
        )
        for title, maps in rows
    ]
    height = [line.shape[0] for line in lines]
    return np.concatenate([np.pad(line, ((0, max(height) - len(line)), (0, 0), (0, 0))) for line in lines])
