"""Which coalitions of players KernelSHAP looks at, and how much each counts.

The Shapley kernel gives all coalitions of s out of M players together the weight (M - 1) / (s (M - s)), so that very
small and very large ones say most. Those of s and M - s players are taken together, the outermost sizes first. A size
whose coalitions are no more than the evaluations that its share of the weight deserves is taken as a whole; from the
rest random pairs, a coalition and its complement, share the weight that is left. Single players and their complements
are always taken as a whole, so that the least squares have one solution. (Lundberg and Lee, NeurIPS 2017, theorem 2,
for the kernel; Covert and Lee, AISTATS 2021, arXiv 2012.01536, for the pairs.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray


def coalitions(players: int, evaluations: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Choose coalitions, neither the empty nor the full one.

    Args:
        players: M, at least 2.
        evaluations: How many coalitions at most; at least 2 M.
        seed: Of the random ones.

    Returns:
        Coalitions (C, M), no two alike, and their weights (C,), which sum to 1. All that there are, with the Shapley
        kernel as their weights, where these are no more than `evaluations`.
    """
    sizes = range(1, players // 2 + 1)
    masses = np.array([_mass(size, players) for size in sizes])
    masses /= masses.sum()
    everything = 2**players - 2 <= evaluations
    members: dict[tuple[int, ...], float] = {}
    taken = 0
    for size, mass in zip(sizes, masses, strict=True):
        count = math.comb(players, size) * (1 if 2 * size == players else 2)
        deserved = (evaluations - len(members)) * mass / masses[taken:].sum()
        if not (everything or size == 1 or deserved >= count):
            break
        for coalition in combinations(range(players), size):
            for each in _pair(coalition, players):
                members[each] = mass / count
        taken += 1
    if taken < len(masses):
        drawn = _drawn(players, list(sizes)[taken:], masses[taken:], evaluations - len(members), seed)
        total = sum(drawn.values())
        left = masses[taken:].sum()
        members.update({coalition: count * left / total for coalition, count in drawn.items()})
    chosen = np.zeros((len(members), players), dtype=bool)
    for row, coalition in zip(chosen, members, strict=True):
        row[list(coalition)] = True
    return chosen, np.fromiter(members.values(), dtype=np.float64)


def _mass(size: int, players: int) -> float:
    """Weight of all coalitions of a size, and of their complements where these have another size."""
    return (1 if 2 * size == players else 2) * (players - 1) / (size * (players - size))


def _pair(coalition: tuple[int, ...], players: int) -> Iterator[tuple[int, ...]]:
    """A coalition and its complement, both in order."""
    yield coalition
    inside = set(coalition)
    yield tuple(player for player in range(players) if player not in inside)


def _drawn(
    players: int, sizes: list[int], masses: NDArray[np.float64], room: int, seed: int
) -> dict[tuple[int, ...], int]:
    """Random coalitions in pairs, and how often each was drawn; no more than `room` different ones."""
    generator = np.random.default_rng(seed)
    counts: dict[tuple[int, ...], int] = {}
    # Many draws of the same few coalitions would go on for long: what was drawn by then is close to the kernel.
    for size in generator.choice(sizes, size=4 * max(room, 2), p=masses / masses.sum()):
        if len(counts) + 2 > max(room, 2):
            break
        coalition = tuple(sorted(generator.choice(players, size=int(size), replace=False).tolist()))
        for each in _pair(coalition, players):
            counts[each] = counts.get(each, 0) + 1
    return counts
