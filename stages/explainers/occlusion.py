"""Occlusion: what the cosine loses when a window of the image is hidden."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explainers.masked import MaskedImage, Perturbation

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class OcclusionConfig(ExplainerConfig):
    """Occlusion by a sliding window."""

    kind: Literal["occlusion"] = "occlusion"
    window: Share = Field(
        1 / 7, description="Side of the window as a share of the image's shorter side; rounded to cells."
    )
    stride: Share = Field(
        0.4, description="By how much the window moves, as a share of its side; rounded to cells."
    )


class Occlusion(Perturbation[OcclusionConfig]):
    """Occlusion (Zeiler and Fergus, ECCV 2014, arXiv 1311.2901): the cosine that is lost when a window is hidden.

    A window of cells slides over the image. With u the unit embedding of the whole image, u_w
    that of the image under window w, and t the phrase:

        H_i = ReLU(mean over the windows that hold cell i of (u - u_w) . t)

    The paper hides a grey square and draws the class's probability at the square's place; the
    mean over the windows that hold a place is the usual form where they overlap, and the same
    where they do not (`stride: 1`). captum's `Occlusion` gives the same map where the windows
    fit the grid; where they do not, its last ones are cut off at the border, and these end with
    the grid. It takes the same time on a processor. It does not compute the maps here, because it
    holds a value of every pixel for every phrase and mask of a step, and needs packages that a
    plain installation lacks.

    Deviations, which no setting restores: windows are whole cells, because a patch that is
    hidden in part is neither; the cosine takes the place of the probability. The cost is 49
    forward passes for ViT-B-32 at 224 px, 169 for ViT-B-16, and no more than 500 for a square
    image of any size.
    """

    config_type = OcclusionConfig

    def _value_cells(self, image: MaskedImage, texts: Tensor) -> Tensor:
        hidden = windows(image.grid_hw, self.config.window, self.config.stride)
        losses = (image.whole - image.embeddings(1 - hidden)) @ texts.T
        share = hidden.flatten(1).to(losses)
        return losses.T @ share / share.sum(dim=0)


def windows(grid_hw: Sides, window: float, stride: float) -> Tensor:
    """Return all windows of a grid, row by row: float32 (W, rows, columns), 1 inside.

    They cover the grid, and none leaves it. `window` and `stride` are those of `OcclusionConfig`.

    >>> windows((1, 3), window=1.0, stride=1.0).tolist()
    [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]
    """
    side = max(1, round(window * min(grid_hw)))
    step = max(1, round(stride * side))
    # The last window ends with the grid.
    tops, lefts = (sorted({*range(0, cells - side + 1, step), cells - side}) for cells in grid_hw)
    hidden = torch.zeros(len(tops) * len(lefts), *grid_hw)
    places = ((top, left) for top in tops for left in lefts)
    for mask, (top, left) in zip(hidden, places, strict=True):
        mask[top : top + side, left : left + side] = 1
    return hidden
