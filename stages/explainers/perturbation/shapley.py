"""Shapley values of the unit embedding, over halves of halves (Partition SHAP).

Masked images show some cells and hide the others. The vector u is explained (`masked`), so that d_j . t is the value of
the cosine with phrase t. The attributions sum to c(everything) - c(nothing), before negative ones are cut.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explainers.perturbation.masked import MaskedImage, Perturbation, PerturbationConfig


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
        top = self.top
        left = self.left
        bottom = self.bottom
        right = self.right
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
    order = count()
    queue = list[tuple[float, int, Cut]]()
    left = max_evaluations - 1

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
            with_first = seen[2 * index]
            with_second = seen[2 * index + 1]
            first_shown = masks[2 * index]
            second_shown = masks[2 * index + 1]
            weight = cut.weight / 2
            wait(Cut(first, cut.context, cut.without, with_first, weight))
            wait(Cut(second, cut.context, cut.without, with_second, weight))
            wait(Cut(first, second_shown, with_second, cut.with_it, weight))
            wait(Cut(second, first_shown, with_first, cut.with_it, weight))
    for _, _, cut in queue:
        cut.part.of(values).add_(cut.value / cut.part.cells)
    return values.flatten(0, 1)
