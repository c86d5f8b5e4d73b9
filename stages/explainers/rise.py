"""RISE, and the embeddings of masked images, of which insertion and deletion are made too.

CLIP embeds images and texts apart, so that the embedding of a masked image does not depend on
the phrase. N masks cost N forward passes of the image tower, and the cosines with all phrases
are then one product. Masked pixels are not rounded: between the pixel and its baseline every
shade reaches the tower.

Shapes: P phrases, N masks, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.contract.values import Sides
from stages.explain.config import ExplainerConfig
from stages.explain.maps import Maps
from stages.explainers.walk import SingleImageExplainer
from stages.shared.model.towers.dense import dense
from stages.shared.model.towers.tower import Tower

CELLS: Final = 8  # of the coarse grid along the shorter side, as in the authors' code

SHOWN: Final = 0.5  # probability that a cell is shown, the paper's

MASKS_PER_STEP: Final = {"cpu": 8, "cuda": 64}
"""Masked images in one forward pass. On CPUs more are slower, because their activations no longer
fit the caches."""


class RiseConfig(ExplainerConfig):
    """RISE."""

    kind: Literal["rise"] = "rise"
    masks: int = Field(512, ge=2, le=100_000, description="Random masks, each one forward pass.")


class Rise(SingleImageExplainer[RiseConfig]):
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
    cost = "perturbation"
    at_cells = True

    @torch.no_grad()
    def _maps_of_image(self, rgb: Tensor) -> Maps:
        tower = self.model.tower
        features = dense(tower, rgb, block=self.early_block)
        baseline = baseline_image(tower, rgb[0])

        def heat(texts: Tensor) -> Tensor:
            cosines = []
            shares = []
            for masks in rise_masks(self.config.masks, (rgb.shape[1], rgb.shape[2])):
                cosines.append(masked_embeddings(tower, rgb[0], masks, baseline) @ texts[0].T)
                shares.append(F.adaptive_avg_pool2d(masks, tower.grid_of(rgb)).flatten(1))
            weights = torch.cat(cosines).double()
            share = torch.cat(shares).to(weights)
            return ((weights - weights.mean(dim=0)).T @ share / (len(share) * SHOWN)).relu().to(texts)[None]

        return Maps(heat=heat, embedding=features.embedding, tokens=features.tokens)


def rise_masks(count: int, size_hw: Sides, step: int = 64) -> Iterator[Tensor]:
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


def baseline_image(tower: Tower, rgb: Tensor) -> Tensor:
    """Return the pixels behind the masks of an image (height, width, 3), float32 in 0-255, on the device.

    They have the mean colour of the model's normalisation. It is 0 behind that, so that a mask
    multiplies the input as in the paper. It is not neutral: a grey area is an object that the
    model may know, and its effect on the embedding counts as the hidden pixels' doing.
    """
    return (tower.mean.float() * 255).expand(rgb.shape)


@torch.no_grad()
def masked_embeddings(tower: Tower, rgb: Tensor, masks: Tensor, baseline: Tensor) -> Tensor:
    """Embed an image under many masks, float32 (N, E), of unit length; the head computes in float32.

    Args:
        tower: Any image tower.
        rgb: uint8 (height, width, 3).
        masks: (N, height, width): 1 shows the image, 0 the baseline.
        baseline: (height, width, 3) in 0-255, see `baseline_image`.

    Raise ValueError if a side does not fit the tower.
    """
    hidden = baseline.to(tower.device, torch.float32)
    shown = rgb.to(tower.device, torch.float32) - hidden
    embeddings = []
    for part in masks.split(MASKS_PER_STEP["cuda" if tower.device.type == "cuda" else "cpu"]):
        share = part.to(tower.device, torch.float32)[..., None]
        embeddings.append(F.normalize(dense(tower, hidden + share * shown).embedding, dim=-1))
    return torch.cat(embeddings)
