"""Where right answers stand in a ranking.

Equal similarities are in random order, and every number here is the expected one over these orders. A model that gives
all candidates the same similarity then scores what chance scores, and no figure depends on the order of the input.

Shapes: Q queries, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranks:
    """What stands before the first right answer of each query.

    Attributes:
        ahead: int64 (Q,), wrong candidates that are more similar than the best right one.
        level: int64 (Q,), wrong candidates that are exactly as similar.
        right: int64 (Q,), right candidates that are exactly as similar as the best of them: 1 or more.
    """

    ahead: NDArray[np.int64]
    level: NDArray[np.int64]
    right: NDArray[np.int64]

    def hits(self, k: int) -> Floats:
        """Probability that a right answer is among the first k, (Q,)."""
        missed: Floats = np.ones(len(self.ahead))
        for drawn in range(k):
            # The next place holds one of the level ones, if those ahead fill none of the first k any more.
            place = drawn - self.ahead
            left = np.maximum(self.level - place, 0) / np.maximum(self.level + self.right - place, 1)
            missed *= np.where(place >= 0, left, 1.0)
        return np.subtract(1.0, missed)

    def reciprocal(self) -> Floats:
        """One over the place of the first right answer, which is 1 for the best place, (Q,)."""
        found: Floats = np.reciprocal(self.ahead + 1.0)
        for query in np.flatnonzero(self.level):
            places = np.arange(self.level[query] + 1)
            left = (self.level[query] - places) / (self.level[query] + self.right[query] - places)
            reached = np.concatenate([[1.0], np.cumprod(left)[:-1]])
            found[query] = (reached * (1.0 - left) / (self.ahead[query] + places + 1.0)).sum()
        return found


def ranks(similarities: NDArray[np.float32], right: NDArray[np.bool_]) -> Ranks:
    """Where the right answers stand.

    Args:
        similarities: (Q, C), finite.
        right: (Q, C), one or more in each row.
    """
    best = np.where(right, similarities, -np.inf).max(axis=1, keepdims=True)
    level = similarities == best
    return Ranks(
        ahead=((similarities > best) & ~right).sum(axis=1),
        level=(level & ~right).sum(axis=1),
        right=(level & right).sum(axis=1),
    )


def chance(right: int, candidates: int) -> float:
    """Probability that the first of `candidates` in random order is one of the `right` ones."""
    return right / candidates
