"""Features of regions, made of the dense features of their images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.deferred import torchvision
from stages.shared.model.towers.tower import Placement


def by_boxes(patches: Tensor, grid_hw: tuple[int, int], placement: Placement, rois: Tensor) -> Tensor:
    """One feature for each box: the mean of the patches' directions under it, as CLIPSelf takes it.

    Every patch counts by its direction alone, as in CLIPSelf (arXiv 2310.01403): RoIAlign with one bin, several samples
    in it, on features of length 1.

    Args:
        patches: (B, N, E), in any scale, of `dense`.
        grid_hw: rows and columns of the patches.
        placement: where the tower's tokens are.
        rois: float (R, 5): image of the batch, x0, y0, x1, y1 in px of the images, half open.

    Returns:
        (R, E), of length 1.
    """
    unit = F.normalize(patches.float(), dim=-1).mT.unflatten(-1, grid_hw)
    if placement.shift_px:
        rois = rois - rois.new_tensor([0.0, *[placement.shift_px] * 4])
    found: Tensor = torchvision.ops.roi_align(unit, rois.to(unit.dtype), (1, 1), 1.0 / placement.stride_px, -1, True)
    return F.normalize(found.flatten(1), dim=-1)


def by_masks(patches: Tensor, shares: Tensor) -> Tensor:
    """One feature for each mask: the mean of the patches' directions, weighted by the share of each inside.

    Args:
        patches: (R, N, E), in any scale: for each mask those of its image.
        shares: float (R, N), 0 .. 1, or (R, grid_h, grid_w).

    Returns:
        (R, E), of length 1; zeros for a mask that is empty.
    """
    unit = F.normalize(patches.float(), dim=-1)
    return F.normalize(torch.einsum("rn,rne->re", shares.flatten(1).to(unit.dtype), unit), dim=-1)
