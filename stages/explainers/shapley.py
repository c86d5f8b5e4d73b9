"""Shapley values of the unit embedding, over halves of halves (Partition SHAP).

Masked images show some cells and hide the others. The values d_j of the unit embedding u are
vectors, so that d_j . t is the value of the cosine with phrase t. Its values sum to
c(everything) - c(nothing), before negative ones are cut.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explainers.masked import MaskedImage, Perturbation

CUTS_PER_STEP: Final = 16  # rectangles that are cut before the next ones are chosen


class PartitionShapConfig(ExplainerConfig):
    """Partition SHAP: Owen values over a hierarchy of rectangles."""

    kind: Literal["partition_shap"] = "partition_shap"
    max_evaluations: int = Field(
        512, ge=4, le=1_000_000, description="Most masked images, each one forward pass; 500 in `shap`."
    )


class PartitionShap(Perturbation[PartitionShapConfig]):
    """Partition SHAP: Owen values over halves of the image, as the `shap` package's Partition explainer computes them.

    (Owen, 1977; Lundberg and Lee, NeurIPS 2017, arXiv 1705.07874; the algorithm is known from
    the documentation and source of `shap`, MIT.)

    The image is cut into two halves along its longer side, each half again, down to single
    cells. At each cut the halves are two players, in a context of other parts that are shown.
    With m a context, L and R the halves of node n, the value of a half is the mean of its gains
    before and after the other; for L:

        value of L in context m        u(m + L) - u(m)
        value of L in context m + R    u(m + L + R) - u(m + R)

    A child is cut in both contexts, each with half its parent's weight. Full depth takes about
    two thirds of the squared number of cells in forward passes; `max_evaluations` ends it
    before. A part that is not cut by then shares its value equally among its cells.

    The next node to be cut is the one with the greatest weight times |u(m + n) - u(m)|. No
    phrase's change of the cosine can exceed that, so the cuts serve any phrase. `shap` takes
    the greatest change of the outputs.

    Deviations from `shap`: no `fixed_context`; `CUTS_PER_STEP` nodes are cut together. From
    Shapley values: cells form coalitions with the rest of their own half alone, which no setting
    restores, because all coalitions of N cells are 2^N. The values of the two halves of the
    image are Shapley values, and so is each cut in each of its contexts.
    """

    config_type = PartitionShapConfig

    def _value_cells(self, image: MaskedImage, texts: Tensor) -> Tensor:
        return texts.double() @ owen_values(image, self.config.max_evaluations).T


Rectangle = tuple[slice, slice]
"""Cells of a grid by their rows and columns."""


def halve(part: Rectangle) -> tuple[Rectangle, Rectangle]:
    """Cut a rectangle across its longer side; the first part is the smaller one.

    >>> halve((slice(0, 3), slice(0, 2)))
    ((slice(0, 1, None), slice(0, 2, None)), (slice(1, 3, None), slice(0, 2, None)))
    """
    rows, columns = part
    if rows.stop - rows.start >= columns.stop - columns.start:
        middle = (rows.start + rows.stop) // 2
        return (slice(rows.start, middle), columns), (slice(middle, rows.stop), columns)
    middle = (columns.start + columns.stop) // 2
    return (rows, slice(columns.start, middle)), (rows, slice(middle, columns.stop))


def _show(context: Tensor, part: Rectangle) -> Tensor:
    """Return a context (rows, columns) with a rectangle shown."""
    mask = context.clone()
    mask[part] = 1
    return mask


@dataclass(frozen=True, slots=True)
class Cut:
    """A rectangle that waits to be cut, in a context of other cells.

    Attributes:
        part: The rectangle.
        context: Mask (rows, columns) of the other cells that are shown.
        context_embedding: Unit embedding of the context alone, float64 (E,).
        full_embedding: Unit embedding of the context with the rectangle, float64 (E,).
        weight: Share of this context in the rectangle's value.
    """

    part: Rectangle
    context: Tensor
    context_embedding: Tensor
    full_embedding: Tensor
    weight: float

    @property
    def value(self) -> Tensor:
        """Value of the rectangle here, float64 (E,)."""
        return self.weight * (self.full_embedding - self.context_embedding)


def owen_values(image: MaskedImage, max_evaluations: int) -> Tensor:
    """Return the Owen values of the unit embedding, float64 (N, E)."""
    rows, columns = image.grid_hw
    empty = torch.zeros(rows, columns)
    baseline = image.embeddings(empty[None])[0].double()
    values = torch.zeros(rows, columns, len(baseline), dtype=torch.float64, device=baseline.device)
    order = count()
    queue = list[tuple[float, int, Cut]]()
    budget = max_evaluations - 1

    def enqueue(cut: Cut) -> None:
        if empty[cut.part].numel() == 1:
            values[cut.part] += cut.value
        else:
            heapq.heappush(queue, (-float(cut.value.norm()), next(order), cut))

    enqueue(Cut((slice(0, rows), slice(0, columns)), empty, baseline, image.whole.double(), 1.0))
    while queue and budget >= 2:
        # Several at once: one forward pass with many masks is faster than many with two.
        number = min(len(queue), budget // 2, CUTS_PER_STEP)
        cuts = [heapq.heappop(queue)[2] for _ in range(number)]
        halves = [halve(cut.part) for cut in cuts]
        masks = [_show(cut.context, half) for cut, pair in zip(cuts, halves, strict=True) for half in pair]
        embeddings = image.embeddings(torch.stack(masks)).double()
        budget -= len(masks)
        for index, (cut, (first, second)) in enumerate(zip(cuts, halves, strict=True)):
            first_mask, second_mask = masks[2 * index : 2 * index + 2]
            first_embedding, second_embedding = embeddings[2 * index : 2 * index + 2]
            weight = cut.weight / 2
            enqueue(Cut(first, cut.context, cut.context_embedding, first_embedding, weight))
            enqueue(Cut(second, cut.context, cut.context_embedding, second_embedding, weight))
            enqueue(Cut(first, second_mask, second_embedding, cut.full_embedding, weight))
            enqueue(Cut(second, first_mask, first_embedding, cut.full_embedding, weight))
    for _, _, cut in queue:
        values[cut.part] += cut.value / empty[cut.part].numel()
    return values.flatten(0, 1)
