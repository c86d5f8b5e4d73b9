"""The power of the heat where no calibration cuts maps: maps of any explainer become as narrow as those of Grad-ECLIP.

Rules such as a fixed share of the highest heat were chosen on maps of Grad-ECLIP. Other explainers make flatter maps,
of which the same share leaves nearly the whole image. One power for all maps of a run makes their mean heat that of
Grad-ECLIP. It needs no annotations: the heat of the first images decides it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from phrasebox.stages.contract.levels import LEVELS
from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.regions.config import LARGEST_EXPONENT, SMALLEST_EXPONENT
from phrasebox.stages.regions.maker import levels_of_map

MEAN_HEAT: Final = 0.195
"""The mean heat, as a share of each map's highest, of Grad-ECLIP's maps of 100 photographs with `photo`."""

USUAL: Final = (0.67, 1.5)
"""Exponents that are taken as 1: on photographs those of Grad-ECLIP lie between 0.94 and 1.10 with four models, and
1.37 with patches that are too coarse to gain from it."""


def fit_exponent(heat_maps: Iterable[HeatMap]) -> float | None:
    """Return the power of the heat that gives maps a mean heat of `MEAN_HEAT`, and 1 if it is usual.

    It has two decimals. None if no map has heat.
    """
    from scipy.optimize import brentq  # noqa: PLC0415  it takes half a second to import

    maps = [levels for heat_map in heat_maps if (levels := levels_of_map(heat_map)) is not None]
    if not maps:
        return None
    shares = np.mean(
        [np.bincount(levels.ravel(), minlength=LEVELS + 1) / levels.size for levels in maps], axis=0
    )
    heat = np.arange(LEVELS + 1) / LEVELS

    def excess(exponent: float) -> float:
        return float(shares @ heat**exponent) - MEAN_HEAT

    if excess(SMALLEST_EXPONENT) <= 0:
        exponent = SMALLEST_EXPONENT
    elif excess(LARGEST_EXPONENT) >= 0:
        exponent = LARGEST_EXPONENT
    else:
        exponent = round(float(brentq(excess, SMALLEST_EXPONENT, LARGEST_EXPONENT, xtol=1e-4)), 2)
    low, high = USUAL
    return 1.0 if low <= exponent <= high else exponent


def exponent_in_words(exponent: float) -> str:
    """Return a sentence for the log."""
    if exponent == 1.0:
        return "the heat of the first images is as usual (regions.exponent: 1)"
    shape = "flatter" if exponent > 1 else "narrower"
    return f"the first images' maps are {shape} than usual, and are cut after a power (regions.exponent: {exponent})"
