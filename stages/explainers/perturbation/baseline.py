"""What stands in an image where a mask hides it.

No baseline is neutral: a grey area is a thing that the model may know, and what it does to the embedding counts as the
hidden cells' doing. The mean colour is 0 behind the model's normalisation, so that a mask multiplies the input as in
the papers of RISE and Score-CAM. A blurred image keeps its colours and loses its things.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.towers.tower import Tower

BaselineName = Literal["mean", "blur", "black"]
"""`mean`: the mean colour of the model's normalisation. `blur`: the image, blurred. `black`: zeros."""


def baseline_image(tower: Tower, rgb: Tensor, name: BaselineName, blur: float = 0.05) -> Tensor:
    """What is seen where an image is hidden.

    Args:
        tower: Whose normalisation is used.
        rgb: uint8 (height, width, 3).
        name: See `BaselineName`.
        blur: Standard deviation of the blur, as a share of the shorter side.

    Returns:
        float32 (height, width, 3) in 0-255, on the tower's device.
    """
    rgb = rgb.to(tower.device, torch.float32)
    if name == "blur":
        return blurred(rgb, blur * min(rgb.shape[:2]))
    if name == "black":
        return torch.zeros_like(rgb)
    return (tower.mean.float() * 255).expand_as(rgb)


def blurred(rgb: Tensor, sigma_px: float) -> Tensor:
    """An image float32 (height, width, 3) under a Gaussian that reaches three standard deviations.

    What lies outside the image looks like the pixel on its border that is closest.
    """
    reach = max(1, math.ceil(3 * sigma_px))
    offsets = torch.arange(-reach, reach + 1, device=rgb.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    x = rgb.permute(2, 0, 1)[:, None]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None, :])
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return x[:, 0].permute(1, 2, 0)
