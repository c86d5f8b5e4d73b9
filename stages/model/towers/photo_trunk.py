"""The image trunk of the photograph model: a convolution network on a 14 x 14 grid, registered with timm by name.

A stock open_clip configuration (`timm_model_name: tf_efficientnet_lite2`, `timm_pool:
abs_attn`) ends at stride 32, 7 x 7 tokens for 224 pixels, which costs three to four points of
pointing, and its pooling of 1,280 channels has 4.9 million parameters. So the trunk ends at
stride 16 (the last stage is dilated), and a neck brings the channels down to the embedding's
width before open_clip's own attention pooling sees them. After this module is imported,
`open_clip.CLIP` builds the model from its `model.json`.

Shapes: B images, N = 14 * 14 tokens, C = 1,280 channels, D the neck's width.
"""

from __future__ import annotations

from typing import Any, Final

import timm
import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

TRUNK_NAME: Final = "phrasebox_photo_trunk"  # in timm's registry, and so in open_clip's `timm_model_name`
WIDTH: Final = 256  # channels that leave the trunk; also the embedding's width
STRIDE_PX: Final = 16  # from a token to the next
GRID: Final = 14  # tokens a side for the 224 pixels that it was trained on

ALIKE: Final = 0.2
"""Cosine above which two tokens of an image count as parts of one object. It comes from a first
experiment, where averaging finished maps over such tokens gave four points of pointing; here
the tokens are averaged in training too."""


class Neck(nn.Module):
    """C channels of the network -> D of the model, averaged over the tokens of the image that look alike.

    The averaging is attention among tokens with fixed queries and keys: the centred channels
    themselves. It lets a token speak for its object, as the blocks of a vision transformer do,
    without parameters.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, D)."""
        weights = similarity_weights(x)
        y = self.norm(self.reduce(x).to(self.norm.weight.dtype))
        y = y + self.mlp(y)
        averaged: Tensor = weights.to(y.dtype) @ y
        return averaged


def similarity_weights(x: Tensor) -> Tensor:
    """Weigh the tokens of an image for each other: channels (B, N, C) -> (B, N, N), without a gradient.

    The cosine of the channels less the image's mean, less `ALIKE`, where above 0, rows of the
    sum 1. A token counts for itself, so that no row is empty.
    """
    with torch.no_grad():
        unit = F.normalize(x.float() - x.float().mean(dim=1, keepdim=True), dim=-1).to(x.dtype)
        weights = ((unit @ unit.mT).float() - ALIKE).clamp(min=0.0)
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)


class PhotoTrunk(nn.Module):
    """EfficientNet-Lite2 at stride 16 and the neck, with the attributes that open_clip's `TimmModel` needs."""

    def __init__(self) -> None:
        super().__init__()
        # Its TensorFlow "SAME" padding is kept: the ImageNet weights were trained with it.
        self.features: Any = timm.create_model(
            "tf_efficientnet_lite2",
            pretrained=False,
            output_stride=STRIDE_PX,
            num_classes=0,
            global_pool="",
        )
        self.num_features = WIDTH
        self.neck = Neck(int(self.features.num_features))
        self.default_cfg = {
            "pool_size": (GRID, GRID),
            "input_size": (3, GRID * STRIDE_PX, GRID * STRIDE_PX),
        }

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Do nothing: the trunk has neither a classifier nor a pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, height, width) -> (B, D, height / 16, width / 16)."""
        y = self.features(x)
        tokens: Tensor = self.neck(y.flatten(2).transpose(1, 2))
        grid: Tensor = tokens.transpose(1, 2).unflatten(2, y.shape[-2:])
        return grid


def phrasebox_photo_trunk(pretrained: bool = False, **_: Any) -> PhotoTrunk:
    """Build the trunk with random weights, as timm's registry calls it. Raise ValueError for `pretrained`."""
    if pretrained:
        raise ValueError(f"expected pretrained=False, got True: {TRUNK_NAME} has no weights in timm")
    return PhotoTrunk()


register_model(phrasebox_photo_trunk)
