"""Shapley values of the unit embedding: by weighted coalitions (KernelSHAP), or over halves of halves (Partition SHAP).

A coalition is an image that shows its cells and hides the others. The vector u is explained (`masked`), so that d_j . t
is the value of the cosine with phrase t. The attributions sum to c(everything) - c(nothing), before negative ones are
cut.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from stages.explain.config import Seed
from stages.explainers.perturbation.masked import MaskedImage, Perturbation, PerturbationConfig


class KernelShapConfig(PerturbationConfig):
    """KernelSHAP over groups of patches."""

    kind: Literal["kernel_shap"] = "kernel_shap"
    players: int = Field(
        64, ge=1, le=4096, description="Most groups of patches, which are the smallest squares that make no more."
    )
    evaluations: int = Field(
        512, ge=4, le=1_000_000, description="Most coalitions, each one forward pass; at least four for each player."
    )
    seed: Seed = Field(0, description="Random seed of the coalitions, which are the same for all images of one grid.")

    @model_validator(mode="after")
    def _enough_for_all(self) -> Self:
        if self.evaluations < 4 * self.players:
            raise ValueError(f"{self.players} players need at least {4 * self.players} evaluations")
        return self


class KernelShap(Perturbation[KernelShapConfig]):
    """KernelSHAP (Lundberg and Lee, NeurIPS 2017, arXiv 1705.07874): Shapley values by weighted least squares.

    The players are square groups of patches. With u(S) the unit embedding under coalition S and k(S) the Shapley
    kernel, the values of the players are

        minimise   sum_S k(S) |u(S) - u(nothing) - sum_{j in S} d_j|^2
        subject to sum_j d_j = u(everything) - u(nothing)

    solved exactly, for the vector u at once. A group's value is shared equally by its patches. With all 2^M - 2
    coalitions these are the exact Shapley values; with fewer, see `coalitions`.

    Deviations: none for the method; no L1 selection of players, which the authors' package may use; patches in groups,
    so that 512 coalitions say something about each of at most 64 players. `players` of at least the number of patches
    restores single patches, which deserve many thousands of `evaluations`.
    """

    config_type = KernelShapConfig

    def _attribution(self, image: MaskedImage) -> Tensor:
        group_of = groups(image.grid_hw, self.config.players)
        sizes = group_of.flatten().bincount()
        values = shapley_values(image, group_of, self.config.evaluations, self.config.seed)
        return (values / sizes[:, None].to(values))[group_of.flatten().to(values.device)]


def groups(grid_hw: tuple[int, int], most: int) -> Tensor:
    """Number the group of each cell from 0, (rows, columns): the smallest squares that are no more than `most`."""
    rows, columns = grid_hw
    side = next(side for side in range(1, max(grid_hw) + 1) if -(-rows // side) * -(-columns // side) <= most)
    across = -(-columns // side)
    return (torch.arange(rows) // side)[:, None] * across + (torch.arange(columns) // side)[None]


def shapley_values(image: MaskedImage, group_of: Tensor, evaluations: int, seed: int) -> Tensor:
    """Return the Shapley values of the unit embedding, float64 (players, E)."""
    players = int(group_of.max()) + 1
    nothing = image.embeddings(torch.zeros(1, *group_of.shape))[0].double()
    gain = image.whole.double() - nothing
    if players == 1:
        return gain[None]
    chosen, weights = coalitions(players, evaluations, seed)
    shown = torch.from_numpy(chosen)
    found = image.embeddings(shown[:, group_of].float()).double() - nothing
    shown, weight = shown.to(found), torch.from_numpy(weights).to(found.device)
    weighted = shown.mT * weight
    # Lagrange: what the unconstrained solution misses of the sum is spread by the inverse of the normal matrix.
    ones = torch.ones(players, 1, dtype=torch.float64, device=found.device)
    solved = torch.linalg.solve(weighted @ shown, torch.cat([weighted @ found, ones], dim=1))
    free, spread = solved[:, :-1], solved[:, -1:]
    values: Tensor = free + spread / spread.sum() * (gain - free.sum(dim=0))
    return values


def coalitions(players: int, evaluations: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Choose coalitions, neither the empty nor the full one.

    The Shapley kernel gives all coalitions of s out of M players together the weight (M - 1) / (s (M - s)), so that
    very small and very large ones say most. Those of s and M - s players are taken together, the outermost sizes first.
    A size whose coalitions are no more than the evaluations that its share of the weight deserves is taken as a whole;
    from the rest random pairs, a coalition and its complement, share the weight that is left. Single players and their
    complements are always taken as a whole, so that the least squares have one solution. (Lundberg and Lee, NeurIPS
    2017, theorem 2, for the kernel; Covert and Lee, AISTATS 2021, arXiv 2012.01536, for the pairs.)

    Returns:
        Coalitions (C, M), C <= evaluations, no two alike, and their weights (C,), which sum to 1; all that there are,
        with the Shapley kernel as their weights, where these are no more than `evaluations`, which is at least 2 M.
    """
    sizes = range(1, players // 2 + 1)
    # A size has no other size for its complements if it is half of the players.
    sides = np.array([1 if 2 * size == players else 2 for size in sizes])
    masses = sides * np.array([(players - 1) / (size * (players - size)) for size in sizes])
    masses /= masses.sum()
    everything = 2**players - 2 <= evaluations
    members: dict[tuple[int, ...], float] = {}
    taken = 0
    for size, mass, side in zip(sizes, masses, sides, strict=True):
        number = math.comb(players, size) * int(side)
        deserved = (evaluations - len(members)) * mass / masses[taken:].sum()
        if not (everything or size == 1 or deserved >= number):
            break
        for coalition in combinations(range(players), size):
            members.update(dict.fromkeys(_pair(coalition, players), mass / number))
        taken += 1
    if taken < len(masses):
        drawn = _drawn(players, list(sizes)[taken:], masses[taken:], evaluations - len(members), seed)
        total, left = sum(drawn.values()), masses[taken:].sum()
        members.update({coalition: times * left / total for coalition, times in drawn.items()})
    chosen = np.zeros((len(members), players), dtype=bool)
    for row, coalition in zip(chosen, members, strict=True):
        row[list(coalition)] = True
    return chosen, np.fromiter(members.values(), dtype=np.float64)


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
    # Many draws of the same few coalitions would go on for long: the counts by then are close to the kernel.
    for size in generator.choice(sizes, size=4 * max(room, 2), p=masses / masses.sum()):
        if len(counts) + 2 > max(room, 2):
            break
        coalition = tuple(sorted(generator.choice(players, size=int(size), replace=False).tolist()))
        for each in _pair(coalition, players):
            counts[each] = counts.get(each, 0) + 1
    return counts


class PartitionShapConfig(PerturbationConfig):
    """Partition SHAP: Owen values over a hierarchy of rectangles."""

    kind: Literal["partition_shap"] = "partition_shap"
    max_evaluations: int = Field(
        512, ge=4, le=1_000_000, description="Most masked images, each one forward pass; 500 in `shap`."
    )


class PartitionShap(Perturbation[PartitionShapConfig]):
    """Partition SHAP: Owen values over halves of the image, as the `shap` package's Partition explainer computes them.

    (Owen, 1977; Lundberg and Lee, NeurIPS 2017, arXiv 1705.07874; the algorithm is known from the documentation and
    source of `shap`, MIT.)

    The image is cut into two halves along its longer side, each half again, down to single cells. At each cut the
    halves are two players, in a context of other parts that are shown. With m a context, L and R the halves of node n,
    each half is worth the mean of what it adds before and after the other; for L:

        value of L in context m        u(m + L) - u(m)
        value of L in context m + R    u(m + L + R) - u(m + R)

    A child is cut in both contexts, each with half its parent's weight. Full depth takes about two thirds of the
    squared number of cells in forward passes; `max_evaluations` ends it before. A part that is not cut by then shares
    its value equally among its cells.

    The next node to be cut is the one with the greatest weight times |u(m + n) - u(m)|, which no phrase's change of the
    cosine can exceed, so that the cuts serve any phrase. `shap` takes the greatest change of the outputs.

    Deviation: no `fixed_context`.
    """

    config_type = PartitionShapConfig

    def _attribution(self, image: MaskedImage) -> Tensor:
        return owen_values(image, self.config.max_evaluations)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Cells of a grid: rows top .. bottom - 1, columns left .. right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def cells(self) -> int:
        """Number of cells."""
        return (self.bottom - self.top) * (self.right - self.left)

    def halves(self) -> tuple[Rectangle, Rectangle]:
        """Cut across the longer side; the first part is the smaller one."""
        top, left, bottom, right = self.top, self.left, self.bottom, self.right
        if bottom - top >= right - left:
            middle = (top + bottom) // 2
            return Rectangle(top, left, middle, right), Rectangle(middle, left, bottom, right)
        middle = (left + right) // 2
        return Rectangle(top, left, bottom, middle), Rectangle(top, middle, bottom, right)

    def of(self, grid: Tensor) -> Tensor:
        """Return the part of a grid (rows, columns, ...)."""
        return grid[self.top : self.bottom, self.left : self.right]

    def beside(self, context: Tensor) -> Tensor:
        """Return a context (rows, columns) with these cells shown."""
        shown = context.clone()
        self.of(shown).fill_(1)
        return shown


@dataclass(frozen=True, slots=True)
class Cut:
    """A rectangle that waits to be cut in a context (rows, columns) of other cells that are shown.

    `without` and `with_it` are float64 (E,), the unit embeddings of the context alone and with the rectangle; `weight`
    is the share of this context in the rectangle's value.
    """

    part: Rectangle
    context: Tensor
    without: Tensor
    with_it: Tensor
    weight: float

    @property
    def value(self) -> Tensor:
        """Value of the rectangle here, float64 (E,)."""
        return self.weight * (self.with_it - self.without)


def owen_values(image: MaskedImage, max_evaluations: int) -> Tensor:
    """Return the Owen values of the unit embedding, float64 (N, E)."""
    rows, columns = image.grid_hw
    hidden = torch.zeros(rows, columns)
    nothing = image.embeddings(hidden[None])[0].double()
    values = torch.zeros(rows, columns, len(nothing), dtype=torch.float64, device=nothing.device)
    order, queue, left = count(), list[tuple[float, int, Cut]](), max_evaluations - 1

    def wait(cut: Cut) -> None:
        if cut.part.cells == 1:
            cut.part.of(values).add_(cut.value)
        else:
            heapq.heappush(queue, (-float(cut.value.norm()), next(order), cut))

    wait(Cut(Rectangle(0, 0, rows, columns), hidden, nothing, image.whole.double(), 1.0))
    while queue and left >= 2:
        # Several at once: one forward pass with many masks is faster than many with two.
        number = min(len(queue), left // 2, image.masks_per_step // 2)
        cuts = [heapq.heappop(queue)[2] for _ in range(number)]
        halves = [cut.part.halves() for cut in cuts]
        masks = [half.beside(cut.context) for cut, both in zip(cuts, halves, strict=True) for half in both]
        seen = image.embeddings(torch.stack(masks)).double()
        left -= len(masks)
        for index, (cut, (first, second)) in enumerate(zip(cuts, halves, strict=True)):
            with_first, with_second = seen[2 * index], seen[2 * index + 1]
            first_shown, second_shown = masks[2 * index], masks[2 * index + 1]
            weight = cut.weight / 2
            wait(Cut(first, cut.context, cut.without, with_first, weight))
            wait(Cut(second, cut.context, cut.without, with_second, weight))
            wait(Cut(first, second_shown, with_second, cut.with_it, weight))
            wait(Cut(second, first_shown, with_first, cut.with_it, weight))
    for _, _, cut in queue:
        cut.part.of(values).add_(cut.value / cut.part.cells)
    return values.flatten(0, 1)
