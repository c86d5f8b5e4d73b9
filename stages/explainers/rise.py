"""RISE: random masks, each weighted by the cosine of the image that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explainers.masked import DRAWN_MASKS, MaskedImage, Perturbation

CELLS: Final = 8  # of the coarse grid along the shorter side, as in the authors' code

SHOWN: Final = 0.5  # probability that a cell is shown, the paper's


class RiseConfig(ExplainerConfig):
    """RISE."""

    kind: Literal["rise"] = "rise"
    masks: int = Field(512, ge=2, le=100_000, description="Random masks, each one forward pass.")


class Rise(Perturbation[RiseConfig]):
    """RISE (Petsiuk, Das, Saenko, BMVC 2018, arXiv 1806.07421): the mean of random masks, weighted by their cosines.

    Masks M_1 .. M_N show each cell of a coarse grid with probability p, are enlarged bilinearly
    and moved at random. With c_n the cosine of the masked image and the phrase:

        H(x) = ReLU(1 / (N p) sum_n (c_n - mean of c) M_n(x))

    and a cell's heat is the mean of its pixels. A grid of 8 cells stands along the shorter
    side, and along the longer one the number of cells of the same size that fits best. Masks
    depend on the size of the image and a seed alone.

    Deviations from the paper: the mean of c is subtracted, because cosines lie close together
    and far from 0, and the map would otherwise mostly count how often each pixel was shown;
    512 masks (the paper: 4,000 for VGG-16 and 8,000 for
    ResNet-50; Grad-ECLIP's comparison: 2,000; set `masks`); and the cosine in place of a
    class's probability. Pixels that speak against the phrase have no heat.
    """

    config_type = RiseConfig

    def _value_cells(self, image: MaskedImage, texts: Tensor) -> Tensor:
        cosines = []
        shares = []
        for masks in rise_masks(self.config.masks, image.size_hw):
            cosines.append(image.embeddings(masks) @ texts.T)
            shares.append(F.adaptive_avg_pool2d(masks, image.grid_hw).flatten(1))
        weights = torch.cat(cosines).double()
        share = torch.cat(shares).to(weights)
        return (weights - weights.mean(dim=0)).T @ share / (len(share) * SHOWN)


def rise_masks(count: int, size_hw: Sides, step: int = DRAWN_MASKS) -> Iterator[Tensor]:
    """Yield `count` masks for images of a size, float32 (up to `step`, height, width) in 0 .. 1."""
    generator = torch.Generator().manual_seed(0)
    side = min(size_hw) / CELLS
    rows, columns = (max(1, round(length / side)) for length in size_hw)
    down = -(-size_hw[0] // rows)
    right = -(-size_hw[1] // columns)
    grids = (torch.rand(count, rows, columns, generator=generator) < SHOWN).float()
    tops = torch.randint(down, (count,), generator=generator).tolist()
    lefts = torch.randint(right, (count,), generator=generator).tolist()
    for first in range(0, count, step):
        part = slice(first, first + step)
        wide = ((rows + 1) * down, (columns + 1) * right)
        large = F.interpolate(grids[part, None], size=wide, mode="bilinear", align_corners=False)[:, 0]
        corners = zip(large, tops[part], lefts[part], strict=True)
        yield torch.stack([m[top : top + size_hw[0], left : left + size_hw[1]] for m, top, left in corners])
