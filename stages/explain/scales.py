"""Heat maps as the mean of maps of the same image at several sizes, as class activation maps are used for segmentation
(Ahn and Kwak, CVPR 2018; not from the Grad-ECLIP paper).

A larger image shows small things on more tokens, a smaller one shows the size that the network learned from. What both
see is surer than what one sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.geometry import round_to_multiple

if TYPE_CHECKING:
    from stages.explain.base import Maps


def at_scale(rgb: Tensor, scale: float, stride_px: int) -> Tensor:
    """Images uint8 (B, h, w, 3) at a share of their size, each side rounded to the stride; antialiased, bicubic."""
    height, width = (round_to_multiple(side * scale, stride_px) for side in rgb.shape[1:3])
    if (height, width) == rgb.shape[1:3]:
        return rgb
    planes = F.interpolate(rgb.permute(0, 3, 1, 2).float(), (height, width), mode="bicubic", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def mean_of(found: Sequence[Maps], grids_hw: Sequence[tuple[int, int]], shift_cells: float) -> Maps:
    """The mean of what was found at each scale, on the first one's grid.

    Every map counts with its heat as shares of its highest; one without heat adds none. Cosines and the local ones are
    averaged, and embeddings as unit vectors.

    Args:
        found: Of the same images and phrases; values (B, P, rows * columns).
        grids_hw: Rows and columns of each.
        shift_cells: How far right of and below the centres of their cells the values lie, see `HeatMap`.
    """
    from stages.explain.base import Maps  # noqa: PLC0415  which imports this module

    first = found[0]
    values = [
        _on_grid(_shares(each.values).unflatten(-1, grid_hw), grids_hw[0], shift_cells).flatten(-2)
        for each, grid_hw in zip(found, grids_hw, strict=True)
    ]
    constant = [each.constant for each in found if each.constant is not None]
    embedding = [F.normalize(each.embedding.float(), dim=-1) for each in found if each.embedding is not None]
    local = [each.local for each in found if each.local is not None]
    return Maps(
        values=torch.stack(values).mean(dim=0),
        cosines=torch.stack([each.cosines for each in found]).mean(dim=0),
        constant=torch.stack(constant).all(dim=0) if constant else None,
        tokens=first.tokens,
        embedding=torch.stack(embedding).mean(dim=0) if embedding else None,
        local=torch.stack(local).mean(dim=0) if local else None,
    )


def _shares(values: Tensor) -> Tensor:
    highest = values.amax(dim=-1, keepdim=True)
    return torch.where(highest > 0, values / highest, values)


def _on_grid(maps: Tensor, grid_hw: tuple[int, int], shift_cells: float) -> Tensor:
    """Maps (..., rows, columns) on another grid, bilinear between where the values lie.

    Element by element: the bits of a matrix product would depend on how many maps there are.
    """
    for dim, (cells, wanted) in enumerate(zip(maps.shape[-2:], grid_hw, strict=True), start=-2):
        if cells == wanted:
            continue
        centres = torch.arange(wanted, device=maps.device, dtype=torch.float32) + (0.5 + shift_cells)
        places = (centres * (cells / wanted) - (0.5 + shift_cells)).clamp(0, cells - 1)
        before = places.floor().long().clamp(max=max(0, cells - 2))
        share = places - before
        share = share[:, None] if dim == -2 else share
        after = (before + 1).clamp(max=cells - 1)
        maps = maps.index_select(dim, before) * (1 - share) + maps.index_select(dim, after) * share
    return maps
