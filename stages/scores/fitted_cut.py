"""A learned rule for the threshold of a heat map: the one of nine cuts whose part is most likely the object.

`stages/regions/cut_rules.py` measures the cuts of a map, and `pipeline/calibrate/cut_fit.py` fits the rule.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from statistics import fmean
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from phrasebox.stages.scores.fits import Floats, Number, Regression

SHARES: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""The cuts of the rule `fitted`: shares of the highest heat, once the lowest is 0. Seventeen are
no better."""

CUT_FEATURES: Final = (
    "share",
    "share_squared",
    "energy",
    "energy_squared",
    "mean_inside",
    "mean_outside",
    "log_area",
    "log_area_squared",
    "log_box_area",
    "log_box_area_squared",
    "outside_to_inside",
    "outside_to_inside_squared",
    "share_by_box_area",
    "energy_by_box_area",
    "mean_inside_by_box_area",
    "usual_by_box_area",
)
"""Features of a cut, in this order: the heat of the cut, the energy of its main part (share of
all heat), the mean heat in that part and outside, the areas of the part and of its box (shares
of the image). Products of these follow; the last is that of the box and the usual size of the
object."""


class FittedCut(Regression):
    """A learned rule: it takes the cut of a map with the main part that is most likely the object.

    The map is cut at each of `SHARES`. The main part of a cut is the part with most heat; it
    has a worth:

        worth = sum of weight * (feature - mean) / scale        the cut with the highest worth is taken

    Weights and usual sizes are fitted to images with known boxes (`phrasebox calibrate`) and
    hold for the model and settings of the fit.

    Attributes:
        usual: Head noun -> the usual size of such objects: the mean logarithm of the share of
            the image that their boxes cover, minus that of all objects. Nouns that are not in it
            have size 0.
    """

    names = CUT_FEATURES

    usual: dict[str, Number]

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        if len(self.weight) < len(self.names):
            raise ValueError("expected a weight of each feature")
        return self

    def best_cuts(self, features: Floats) -> NDArray[np.intp]:
        """Return the place in `SHARES` of the cut of each map with the highest worth; of equals the lowest.

        features: Of every cut, (maps, len(SHARES), len(CUT_FEATURES)); NaN where nothing lies above a cut.
        """
        weight, mean, scale = self._terms
        # Rounded, so that the last bits of a product decide nothing.
        worth = np.round((features - mean) / scale @ weight, 9)
        best: NDArray[np.intp] = np.where(np.isfinite(worth), worth, -np.inf).argmax(axis=-1)
        return best

    @cached_property
    def _terms(self) -> tuple[Floats, Floats, Floats]:
        """Weight, mean and scale of the features, (len(CUT_FEATURES),) each."""
        weight, mean, scale = (
            np.array([part[name] for name in CUT_FEATURES]) for part in (self.weight, self.mean, self.scale)
        )
        return weight, mean, scale

    def usual_size(self, heads: Collection[str]) -> float:
        """Return the usual size of the object of a map: the mean over the head nouns of its phrases."""
        return fmean(self.usual.get(head, 0.0) for head in heads) if heads else 0.0
