"""Explainers that differ in their masks: a sliding window, random ones, or the tower's features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.contract.geometry import resize_shifted
from stages.contract.values import Sides
from stages.explain.config import Share
from stages.explainers.attention.walk import run_trunk
from stages.explainers.perturbation.masked import MaskedImage, Perturbation, PerturbationConfig
from stages.shared.model.towers.pooled import by_tower


class OcclusionConfig(PerturbationConfig):
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

        H_i = mean over the windows that hold cell i of (u - u_w) . t

    The paper hides a grey square and draws the class's probability at the square's place; the
    mean over the windows that hold a place is the usual form where they overlap, and the same
    where they do not. Deviation: windows are whole cells, because a patch that is hidden in
    part is neither. The cost is 49 forward passes for ViT-B-32 at 224 px, 169 for ViT-B-16, and
    no more than 500 for a square image of any size.
    """

    config_type = OcclusionConfig

    def _attribution(self, image: MaskedImage) -> Tensor:
        hidden = windows(image.grid_hw, self.config.window, self.config.stride)
        losses = image.whole - image.embeddings(1 - hidden)
        share = hidden.flatten(1).mT.to(losses)
        return share @ losses / share.sum(dim=1, keepdim=True)


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


CELLS: Final = 8  # of RISE's coarse grid along the shorter side, as in the authors' code

SHOWN: Final = 0.5  # probability that a cell is shown, the paper's


class RiseConfig(PerturbationConfig):
    """RISE."""

    kind: Literal["rise"] = "rise"
    masks: int = Field(512, ge=2, le=100_000, description="Random masks, each one forward pass.")
    centred: bool = Field(
        True, description="Whether the mean of the cosines is subtracted, which the paper does not do."
    )


class Rise(Perturbation[RiseConfig]):
    """RISE (Petsiuk, Das, Saenko, BMVC 2018, arXiv 1806.07421): the mean of random masks, weighted by their cosines.

    Masks M_1 .. M_N show each cell of a coarse grid with probability p, are enlarged bilinearly
    and moved at random. With c_n the cosine of the masked image and the phrase:

        H(x) = 1 / (N p) sum_n (c_n - mean of c) M_n(x)

    and a cell's heat is the mean of its pixels. A grid of 8 cells stands along the shorter
    side, and along the longer one the number of cells of the same size that fits best.

    Deviations from the paper: the mean of c is subtracted, because cosines lie close together
    and far from 0, and the map would otherwise mostly count how often each pixel was shown
    (`centred: false` restores the paper); 512 masks (the paper: 4,000 for VGG-16 and 8,000 for
    ResNet-50; Grad-ECLIP's comparison: 2,000; set `masks`); and the cosine in place of a
    class's probability.
    """

    config_type = RiseConfig

    def _attribution(self, image: MaskedImage) -> Tensor:
        embeddings = []
        shares = []
        for masks in rise_masks(self.config, image.size_hw):
            embeddings.append(image.embeddings(masks))
            shares.append(F.adaptive_avg_pool2d(masks, image.grid_hw).flatten(1))
        units = torch.cat(embeddings).double()
        share = torch.cat(shares).to(embeddings[0].device).double()
        if self.config.centred:
            units = units - units.mean(dim=0)
        return share.mT @ units / (len(units) * SHOWN)


def rise_masks(config: RiseConfig, size_hw: Sides) -> Iterator[Tensor]:
    """Yield masks float32 (up to `masks_per_step`, height, width) for images of a size, `config.masks` in all."""
    generator = torch.Generator().manual_seed(0)
    side = min(size_hw) / CELLS
    rows, columns = (max(1, round(length / side)) for length in size_hw)
    down = -(-size_hw[0] // rows)
    right = -(-size_hw[1] // columns)
    grids = (torch.rand(config.masks, rows, columns, generator=generator) < SHOWN).float()
    tops = torch.randint(down, (config.masks,), generator=generator).tolist()
    lefts = torch.randint(right, (config.masks,), generator=generator).tolist()
    for first in range(0, config.masks, config.masks_per_step):
        part = slice(first, first + config.masks_per_step)
        wide = ((rows + 1) * down, (columns + 1) * right)
        large = F.interpolate(grids[part, None], size=wide, mode="bilinear", align_corners=False)[:, 0]
        corners = zip(large, tops[part], lefts[part], strict=True)
        yield torch.stack([m[top : top + size_hw[0], left : left + size_hw[1]] for m, top, left in corners])


class ScoreCamConfig(PerturbationConfig):
    """Score-CAM."""

    kind: Literal["score_cam"] = "score_cam"
    channels: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Most channels, those that vary most over the image; all in the paper.",
    )


class ScoreCam(Perturbation[ScoreCamConfig]):
    """Score-CAM (Wang et al., CVPR workshops 2020, arXiv 1910.01279): the image's own features as its masks.

    Each channel k of the last tokens, drawn over the image and stretched to 0-1, is a mask M_k.
    With A_k(i) the channel at token i, c_k the cosine under its mask, and c_0 that of the
    baseline:

        w_k = c_k - c_0
        H_i = ReLU(sum_k w_k A_k(i))

    The tokens are those before the last block of a transformer with a class token, and those
    before the pool elsewhere.

    That is the definition in the paper's text; its algorithm puts a softmax over the channels
    in between. On drawn scenes both forms find the thing as often, and with the increases more
    of the heat lies on it (0.48 to 0.36; 18 phrases of 10 scenes, all channels of the drawn
    model).

    Deviations from the paper: only the `channels` that vary most over the image (a number above
    the width restores the paper), because a tower may have some thousand channels and each is
    one forward pass; the cosine in place of the class's score.
    """

    config_type = ScoreCamConfig
    at_cells = False

    def _attribution(self, image: MaskedImage) -> Tensor:
        channels = loudest_channels(tokens_of(image), self.config.channels)
        low = channels.amin(dim=1, keepdim=True)
        high = channels.amax(dim=1, keepdim=True)
        shares = torch.where(high > low, (channels - low) / (high - low), 0.0)
        baseline = image.embeddings(torch.zeros(1, *image.grid_hw))
        gains = torch.cat([image.embeddings(masks) for masks in _draw_masks(shares, image)]) - baseline
        # A channel that is the same everywhere hides everything, and the rest is rounding.
        gains = torch.where(high > low, gains, 0.0)
        return channels.mT.double() @ gains.double()


def tokens_of(image: MaskedImage) -> Tensor:
    """Return the last tokens that stand for places, float32 (N, D)."""
    rgb = image.rgb[None]
    tokens = by_tower(
        image.tower,
        blocks=lambda tower: tower.tokens_before(rgb, len(tower.blocks) - 1)[0][:, 1:],
        pooled=lambda tower: run_trunk(tower, rgb)[1],
        averaged=lambda tower: run_trunk(tower, rgb)[1],
    )
    return tokens[0].float()


def loudest_channels(tokens: Tensor, most: int) -> Tensor:
    """Tokens (N, D) -> the channels (K, N) that vary most, in the tower's order."""
    spread = tokens.std(dim=0, correction=0)
    channels = spread.argsort(descending=True, stable=True)[:most].sort().values
    return tokens[:, channels].mT.contiguous()


def _draw_masks(shares: Tensor, image: MaskedImage) -> Iterator[Tensor]:
    """Channels (K, N) -> masks (up to `masks_per_step`, height, width), drawn where their tokens look."""
    shift = image.tower.placement.shift_cells
    for part in shares.split(image.masks_per_step):
        grids = part.unflatten(1, image.grid_hw).cpu().numpy()
        yield torch.from_numpy(np.stack([resize_shifted(grid, image.size_hw, shift) for grid in grids]))
