"""RISE (Petsiuk, Das, Saenko, BMVC 2018, arXiv 1806.07421): the mean of random masks, weighted by what they leave.

With masks M_1 .. M_N, in which a cell of a coarse grid is shown with probability p, enlarged bilinearly and moved at
random, and c_n the cosine of the masked image and the phrase:

    H(x) = 1 / (N p) sum_n (c_n - mean of c) M_n(x)

and a cell's heat is the mean of its pixels. A grid of 8 cells stands along the shorter side, as many of the same size
as fit best along the longer one.

Deviations from the paper: the mean of c is taken away, because cosines lie close together and far from 0, so that
without it the map holds little but how often each pixel happened to be shown (`centred: false` restores the paper);
512 masks (the paper: 4,000 for VGG-16 and 8,000 for ResNet-50; Grad-ECLIP's comparison: 2,000; set `masks`); and the
cosine in place of a class's probability. The cost is `masks` forward passes for each image, however many its phrases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explainers.perturbation.explainer import Attribution, MaskedImage, Perturbation, PerturbationConfig, along


class RiseConfig(PerturbationConfig):
    """RISE."""

    kind: Literal["rise"] = "rise"

    masks: Annotated[int, Field(ge=2, le=100_000)] = 512
    """Random masks, each one forward pass."""

    cells: Annotated[int, Field(ge=1, le=64)] = 8
    """Cells of the coarse grid along the shorter side; 8 as in the authors' code."""

    shown: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Probability that a cell is shown; 0.5 in the paper."""

    centred: bool = True
    """Whether the mean of the cosines is taken away. The paper does not."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the masks, which are the same for all images of one size."""


class Rise(Perturbation[RiseConfig]):
    """RISE: random masks."""

    config_type = RiseConfig

    def attribution(self, image: MaskedImage) -> Attribution:
        """See `Perturbation.attribution`."""
        embeddings, shares = [], []
        for masks in rise_masks(self.config, image.size_hw):
            embeddings.append(image.embeddings(masks))
            shares.append(F.adaptive_avg_pool2d(masks, image.grid_hw).flatten(1))
        units, share = torch.cat(embeddings).double(), torch.cat(shares).to(embeddings[0].device).double()
        if self.config.centred:
            units = units - units.mean(dim=0)
        return along(share.mT @ units / (len(units) * self.config.shown))


def rise_masks(config: RiseConfig, size_hw: tuple[int, int]) -> Iterator[Tensor]:
    """Masks float32 (up to `masks_per_step`, height, width) for images of a size, `config.masks` in all."""
    generator = torch.Generator().manual_seed(config.seed)
    side = min(size_hw) / config.cells
    rows, columns = (max(1, round(length / side)) for length in size_hw)
    down, right = -(-size_hw[0] // rows), -(-size_hw[1] // columns)
    grids = (torch.rand(config.masks, rows, columns, generator=generator) < config.shown).float()
    tops = torch.randint(down, (config.masks,), generator=generator).tolist()
    lefts = torch.randint(right, (config.masks,), generator=generator).tolist()
    for first in range(0, config.masks, config.masks_per_step):
        part = slice(first, first + config.masks_per_step)
        wide = ((rows + 1) * down, (columns + 1) * right)
        large = F.interpolate(grids[part, None], size=wide, mode="bilinear", align_corners=False)[:, 0]
        yield torch.stack(
            [
                mask[top : top + size_hw[0], left : left + size_hw[1]]
                for mask, top, left in zip(large, tops[part], lefts[part], strict=True)
            ]
        )
