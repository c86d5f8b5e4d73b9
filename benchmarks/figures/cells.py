"""What several pages share: the data, presets and settings, and the cells of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

DEV: Final = {"split": "Flickr8k dev", "model": "photo"}
SCENES: Final = {"split": "synthetic scenes, series 4242", "model": "demo"}
DRAWN: Final = "scenes/4242/500"
PHOTO: Final = Path("configs/photos.yaml")
FINE: Final = Path("configs/photos-fine.yaml")
WITHOUT: Final = "regions.calibration=none"
BOXES: Final = ("box_recall", "pointing")


def cells(figures: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the cells of figures by name, with their intervals; null where there is none."""
    selected = [figures.get(name) for name in names]
    return [figure and {key: figure[key] for key in ("value", "low", "high")} for figure in selected]


def numbers_of(figure: Mapping[str, Any]) -> list[float]:
    """Return a figure and its interval."""
    return [figure[key] for key in ("value", "low", "high")]


def n_of(evaluation: Mapping[str, Any], images: str) -> str:
    """Return how many images, by this name, and phrases an evaluation has."""
    return f"{evaluation['counts']['images']:,} {images}, {evaluation['counts']['targets']:,} phrases"
