"""The part of a tower before its pool: any module, as a private copy, the tokens of its output, and their places."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.model.towers.layers import Layer, LayerNorm, TensorFunction
from phrasebox.stages.model.towers.tower import Placement
from phrasebox.stages.model.towers.vision import Block, VisionTower, resize_grid


def private_copy(module: nn.Module, precision: torch.dtype | None) -> Any:
    """Copy a module in evaluation mode, without hooks; weights that already have the precision are shared."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()
    }
    module_copy = _copy(module, memo)
    return module_copy if precision is None else module_copy.to(precision)


def shared_copy(module: nn.Module) -> Any:
    """Copy a module as `private_copy` does, but share its parameters: they get the copy's gradients."""
    return _copy(module, {id(p): p for p in module.parameters()})


def _copy(module: nn.Module, memo: dict[int, Any]) -> Any:
    memo |= {id(b): b.detach() for b in module.buffers()}
    for part in module.modules():
        memo |= {id(value): OrderedDict() for name, value in vars(part).items() if name.endswith("_hooks")}
    return copy.deepcopy(module, memo).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTrunk:
    """A network with a grid of features as its output; they become tokens behind their mean, which is the query.

    Attributes:
        body: Normalised pixels (B, 3, height, width) -> features (B, D, grid_h, grid_w).
        positions: (rows, columns) -> position embedding (1 + N, D).
    """

    body: TensorFunction
    positions: Callable[[Sides], Tensor]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the tokens (B, 1 + N, D)."""
        grid = self.body(pixels)
        return self.tokens_of(grid.flatten(2).transpose(1, 2), (grid.shape[2], grid.shape[3]))

    def tokens_of(self, features: Tensor, grid_hw: Sides) -> Tensor:
        """Features of a grid (B, N, D), row by row -> tokens (B, 1 + N, D)."""
        x = torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)
        return x + self.positions(grid_hw).to(x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrunk:
    """A network, and the way from its output to the tokens that are pooled.

    Trunks are no closures: what shuffles the weights of a model reaches them through the fields.
    """

    body: Callable[[Tensor], Any]
    tokens_of: Callable[[Any], Tensor]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the tokens (B, T, D)."""
        return self.tokens_of(self.body(pixels))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTrunk:
    """A transformer whose patches are averaged, behind a norm of every token, or nothing."""

    tower: VisionTower
    norm: Layer

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the tokens of the patches (B, N, D)."""
        x = self.tower.tokens_of(pixels)
        for block in self.tower.blocks:
            x = block(x)
        return self.norm(x[:, self.tower.prefix_tokens :])


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTrunk:
    """The first blocks of a transformer, all that the tower has, for a pool that is the rest of it."""

    tower: VisionTower

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return all tokens (B, T, D)."""
        x = self.tower.tokens_of(pixels)
        for block in self.tower.blocks:
            x = block(x)
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchTrunk:
    """A transformer whose tokens are all patches, as in SigLIP 2 for any aspect ratio.

    Attributes:
        patch_weight, patch_bias: See `VisionTower`.
        position_embedding: (grid_h · grid_w, D).
        grid_hw: The grid that the positions are for.
        blocks: The blocks.
        norm: Norm of every token behind them.
    """

    patch_weight: Tensor
    patch_bias: Tensor | None
    position_embedding: Tensor
    grid_hw: Sides
    blocks: tuple[Block, ...]
    norm: LayerNorm

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the tokens (B, N, D)."""
        x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=self.patch_weight.shape[-1])
        positions = resize_grid(
            self.position_embedding, self.grid_hw, (x.shape[2], x.shape[3]), "averaging"
        )
        x = x.flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def placement_of(trunk: nn.Module, size_px: int, side_of: Callable[[Any, Tensor], Any]) -> Placement:
    """Find the places of a trunk's tokens, by a pass without memory.

    Of layers that work side by side on one grid, such as a block and its shortcut, the mean
    counts: both give to the sum.

    The trunk is only read, its images have `size_px` a side, and `side_of` takes a copy of it
    and pixels (1, 3, size, size) to the side of the grid.
    """
    bare = private_copy(trunk, None).to("meta")
    shifts: dict[int, list[float]] = {}  # by the side of the input's grid

    def note_shift(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        side = inputs[0].shape[-1]
        if output.shape[-1] >= side:
            return
        kernel, stride, dilation = (
            _first(getattr(module, name, 1)) for name in ("kernel_size", "stride", "dilation")
        )
        reach = (kernel - 1) * dilation
        padding = _first(module.padding)
        if type(module).__name__.endswith("Same"):  # TensorFlow's padding: the smaller half in front
            padding = max((-(-side // stride) - 1) * stride + reach + 1 - side, 0) // 2
        shifts.setdefault(side, []).append((reach / 2 - padding - (stride - 1) / 2) * (size_px // side))

    for module in bare.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            module.register_forward_hook(note_shift)
    dtype = next(bare.parameters()).dtype
    side = int(side_of(bare, torch.zeros(1, 3, size_px, size_px, device="meta", dtype=dtype)))
    return Placement(stride_px=size_px // side, shift_px=sum(map(fmean, shifts.values())))


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)
