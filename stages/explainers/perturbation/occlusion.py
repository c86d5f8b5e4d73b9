"""Occlusion (Zeiler and Fergus, ECCV 2014, arXiv 1311.2901): what the cosine loses when a window is hidden.

A window of cells slides over the image. With u the unit embedding of the whole image, u_w that of the image without
window w, and t the phrase:

    H_i = mean over the windows that hold cell i of (u - u_w) . t

The paper hides a grey square and draws the class's probability at the square's place; the mean over the windows that
hold a place is the usual form where they overlap, and the same where they do not. Deviations: windows are whole cells,
because a patch that is hidden in part is neither. The window is a seventh of the image's shorter side and moves by two
fifths of that, in whole cells: 49 forward passes for ViT-B-32 at 224 px, 169 for ViT-B-16, and no more than 500 for a
square image of any size.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explainers.perturbation.explainer import Attribution, MaskedImage, Perturbation, PerturbationConfig, along


class OcclusionConfig(PerturbationConfig):
    """Occlusion by a sliding window."""

    kind: Literal["occlusion"] = "occlusion"

    window: Annotated[float, Field(gt=0.0, le=1.0)] = 1 / 7
    """Side of the square window as a share of the image's shorter side; rounded to cells, at least one."""

    stride: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """By how much the window moves, as a share of its side; rounded to cells, at least one."""


class Occlusion(Perturbation[OcclusionConfig]):
    """Occlusion: a window that slides over the image."""

    config_type = OcclusionConfig

    def attribution(self, image: MaskedImage) -> Attribution:
        """See `Perturbation.attribution`."""
        hidden = windows(image.grid_hw, self.config.window, self.config.stride)
        losses = image.whole - image.embeddings(1 - hidden)
        share = hidden.flatten(1).mT.to(losses)
        return along(share @ losses / share.sum(dim=1, keepdim=True))


def windows(grid_hw: tuple[int, int], window: float, stride: float) -> Tensor:
    """All windows of a grid, row by row: float32 (W, rows, columns), 1 inside. They cover the grid, and none leaves it.

    Args:
        grid_hw: Rows and columns.
        window: See `OcclusionConfig`.
        stride: See `OcclusionConfig`.
    """
    side = max(1, round(window * min(grid_hw)))
    step = max(1, round(stride * side))
    tops, lefts = (_starts(cells, side, step) for cells in grid_hw)
    hidden = torch.zeros(len(tops) * len(lefts), *grid_hw)
    places = ((top, left) for top in tops for left in lefts)
    for mask, (top, left) in zip(hidden, places, strict=True):
        mask[top : top + side, left : left + side] = 1
    return hidden


def _starts(cells: int, side: int, step: int) -> list[int]:
    """Where windows begin; the last one ends with the grid."""
    last = cells - side
    return sorted({*range(0, last + 1, step), last})
