"""What is measured of a region, and the scores made from it.

A score is a function of one region's `Evidence` with a value in 0 .. 1 that is larger for regions
more likely to be right. None of those here is a probability: they rank. `calibration.py` makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known about one region. Heat is the map with its smallest value 0 and its largest 1.

    energy        share of the map's total heat that lies inside the region, 0 .. 1
    area          share of the image that the region covers, > 0 .. 1
    mean_inside   mean heat inside the region, 0 .. 1
    mean_outside  mean heat of everything else, 0 .. 1; 0 if there is nothing else
    peak          largest heat inside the region, 0 .. 1; 1 where the map's maximum is inside
    threshold     heat at which the map was cut, 0 .. 1
    similarity    cosine of image and phrase, -1 .. 1
    """

    energy: float
    area: float
    mean_inside: float
    mean_outside: float
    peak: float
    threshold: float
    similarity: float


def energy(evidence: Evidence) -> float:
    """`energy`: how much of what the model saw of the phrase lies in this region.

    High for one compact spot on an otherwise cold map, low where heat is scattered, and for each of
    several equal parts. Grows with the region: a region of the whole image has 1.
    """
    return evidence.energy


def contrast(evidence: Evidence) -> float:
    """`max(0, mean_inside - mean_outside)`: how much hotter the region is than everything else."""
    return max(0.0, evidence.mean_inside - evidence.mean_outside)


def product(evidence: Evidence) -> float:
    """`energy * contrast`: hot, and the only hot place."""
    return energy(evidence) * contrast(evidence)


def mean_heat(evidence: Evidence) -> float:
    """`mean_inside`: mean heat inside the region, the usual baseline."""
    return evidence.mean_inside


def peak(evidence: Evidence) -> float:
    """`peak`: 1 for the region that holds the map's maximum. Says nothing across phrases."""
    return evidence.peak


def similarity(evidence: Evidence) -> float:
    """`(1 + similarity) / 2`: the model's cosine alone, the same for all regions of a phrase."""
    return (1.0 + evidence.similarity) / 2.0


SCORES: Final[dict[str, Callable[[Evidence], float]]] = {
    "contrast": contrast,
    "energy": energy,
    "mean_heat": mean_heat,
    "peak": peak,
    "product": product,
    "similarity": similarity,
}
"""Name in the config -> score."""


def rounded_score(name: str, evidence: Evidence) -> float:
    """The score `name` of a region, kept within 0 .. 1 and rounded to six decimals.

    Rounded so that the order of a sum over pixels never shows: not in ties, not in the dataset.
    """
    return round(min(1.0, max(0.0, SCORES[name](evidence))), 6)
