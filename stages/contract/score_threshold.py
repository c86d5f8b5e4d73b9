"""Thresholds: what a least score keeps of the regions of a dataset.

Where scores are probabilities, their mean over some regions is the share of these that are right: the precision. The
mean over the regions with at least a score grows with that score, so a wanted precision has a lowest score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from phrasebox.stages.contract.values import Integers

PRECISIONS: Final = (0.5, 0.6, 0.7, 0.8)
"""Precisions that tables show, ascending."""

_ROUNDING: Final = 1e-6  # Scores are float32: the mean of 0.9 and 0.7 is less than 0.8

USEFUL_SHARE: Final = 1 / 3
"""The share of the regions that an advised threshold keeps, where one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The regions with at least a score.

    Attributes:
        goal: The precision, or the share of all regions, that the score was chosen for, 0 .. 1.
        score: The least score, 0 .. 1.
        precision: Mean score of the regions; NaN without any.
        regions: Number of regions with at least this score.
        total: Number of all regions.
    """

    goal: float
    score: float
    precision: float
    regions: int
    total: int

    @property
    def share(self) -> float:
        """The part of all regions, 0 .. 1."""
        return self.regions / max(1, self.total)

    def in_words(self) -> str:
        """Return the score and what it keeps, for people.

        >>> Threshold(goal=0.7, score=0.46, precision=0.7004, regions=3104, total=9821).in_words()
        '0.7: score >= 0.460 keeps 3,104 of 9,821 regions'
        """
        return f"{self.goal:g}: score >= {self.score:.3f} keeps {self.regions:,} of {self.total:,} regions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRanking:
    """The scores of regions, without the regions.

    Attributes:
        scores: The different scores, float64 (n,), highest first, 0 .. 1.
        regions: Number of regions with at least each of them, int64 (n,).
        precisions: Mean score of these regions, less the margin, float64 (n,), which falls.
    """

    scores: NDArray[np.float64]
    regions: Integers
    precisions: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.float32]) -> Self:
        """Count scores (n,) in any order."""
        different, counts = np.unique(scores, return_counts=True)
        return cls.of_different(different[::-1], counts[::-1])

    @classmethod
    def of_different(cls, scores: NDArray[np.float32], counts: Integers) -> Self:
        """Take different scores (n,), highest first, and the number of regions with each."""
        regions = np.cumsum(counts)
        descending = scores.astype(np.float64)
        return cls(scores=descending, regions=regions, precisions=np.cumsum(descending * counts) / regions)

    def less(self, margin: float) -> Self:
        """Return the same ranking, whose scores are taken to be too high by a margin, 0 .. 1."""
        return replace(self, precisions=np.maximum(self.precisions - margin, 0.0)) if margin else self

    @property
    def total(self) -> int:
        """Number of all regions."""
        return int(self.regions[-1]) if self.regions.size else 0

    @property
    def highest_precision(self) -> float:
        """The precision of the regions with the highest score; 0 without regions."""
        return float(self.precisions[0]) if self.precisions.size else 0.0

    def at_precision(self, precision: float) -> Threshold | None:
        """Return the lowest score whose regions have at least a precision; None if no score has it."""
        reached = int(np.count_nonzero(self.precisions >= precision - _ROUNDING))
        return self._at(precision, reached - 1) if reached else None

    def at_share(self, share: float) -> Threshold | None:
        """Return the score that keeps the best regions, a share of all; None without regions.

        Regions with an equal score stay together, so it may keep a few more.
        """
        place = int(np.searchsorted(self.regions, max(1, round(share * self.total))))
        return self._at(share, place) if self.total else None

    def _at(self, goal: float, place: int) -> Threshold:
        return Threshold(
            goal=goal,
            score=float(self.scores[place]),
            precision=float(self.precisions[place]),
            regions=int(self.regions[place]),
            total=self.total,
        )

    def table(self) -> tuple[Threshold, ...]:
        """Return the thresholds of those of `PRECISIONS` that some score reaches."""
        thresholds = map(self.at_precision, PRECISIONS)
        return tuple(threshold for threshold in thresholds if threshold is not None)


def useful_threshold(thresholds: Sequence[Threshold]) -> Threshold | None:
    """Return the highest precision of a table that keeps `USEFUL_SHARE` of the regions, else the lowest one.

    None for an empty table.
    """
    useful = [threshold for threshold in thresholds if threshold.share >= USEFUL_SHARE]
    return useful[-1] if useful else next(iter(thresholds), None)
