"""A CLIP vision transformer taken apart: its weights as plain tensors, its blocks as functions.

`pack_tower` gives the same tower with weights in oneDNN's blocked layout, through private parts of torch.

The model that the weights come from is only read: nothing is hooked, re-bound, cast or switched on it, so it computes
afterwards what it computed before. All functions are differentiable in their tokens and their weights, of which those
that an explainer gets carry no gradient.

Shapes: B images, N patches, T = N + 1 tokens (the class token first), D width, H heads, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.config import TowerKind
from stages.shared.model.towers.layers import LayerNorm, Linear
from stages.shared.model.towers.tower import Placement, Tower

Heads = int
"""Number of attention heads: the network's own, or 1 as in the authors' Grad-ECLIP code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One residual attention block: `y = x + ls_1(attention(ln_1(x)))`, then `y + ls_2(mlp(ln_2(y)))`.

    Attributes:
        kv: the part of `qkv` that makes keys and values.
    """

    heads: int
    ln_1: LayerNorm
    qkv: Linear
    kv: Linear
    out: Linear
    ls_1: Tensor | None
    ln_2: LayerNorm
    fc: Linear
    activation: Callable[[Tensor], Tensor]
    proj: Linear
    ls_2: Tensor | None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (..., T, D) -> queries, keys, values, each (..., T, D), heads side by side."""
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        return q, k, v

    def project_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (..., T, D) -> keys and values only, each (..., T, D)."""
        k, v = self.kv(self.ln_1(x)).chunk(2, dim=-1)
        return k, v

    def finish(self, x: Tensor, o: Tensor) -> Tensor:
        """The block after attention: tokens x and outputs o of attention, before its projection -> tokens; (..., D)."""
        a = self.out(o)
        y = x + (a if self.ls_1 is None else a * self.ls_1)
        m = self.proj(self.activation(self.fc(self.ln_2(y))))
        return y + (m if self.ls_2 is None else m * self.ls_2)

    def __call__(self, x: Tensor, heads: Heads | None = None) -> Tensor:
        """All tokens (B, T, D) -> (B, T, D); `heads` overrides the number of heads."""
        q, k, v = self.project(x)
        return self.finish(x, attend(q, k, v, heads or self.heads))

    def float(self) -> Block:
        """The same block with float32 weights; itself if they are already.

        It computes in float32, but weights that were rounded to 16 bits stay as rounded as they are.
        """
        if self.qkv.weight.dtype == torch.float32:
            return self
        return replace(
            self,
            **{name: getattr(self, name).float() for name in ("ln_1", "ln_2", *LINEARS)},
            ls_1=None if self.ls_1 is None else self.ls_1.float(),
            ls_2=None if self.ls_2 is None else self.ls_2.float(),
        )


LINEARS = ("qkv", "kv", "out", "fc", "proj")
"""Names of a block's matrix products."""


def split_heads(x: Tensor, heads: Heads) -> Tensor:
    """(B, T, D) -> (B, H, T, D / H)."""
    apart: Tensor = x.unflatten(-1, (heads, x.shape[-1] // heads))
    return apart.transpose(-3, -2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> Tensor:
    """Scaled dot-product attention, (B, Tq, D) and (B, T, D) twice -> (B, Tq, D) before the projection.

    The scale is (D / heads) ** -0.5: with one head D ** -0.5, as in the authors' code.
    """
    o = F.scaled_dot_product_attention(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads))
    return o.transpose(-3, -2).flatten(-2)


def resize_positions(
    table: Tensor, old_hw: tuple[int, int], new_hw: tuple[int, int], mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """Interpolate a position embedding (1 + old_h · old_w, D), class position first, to another grid.

    The class position is kept. The others are resized with `align_corners=False`: bicubically, as in Grad-ECLIP's
    preprocessing, or bilinearly, as FC-CLIP (arXiv 2308.02487) does it for CLIP's ResNets.
    """
    if new_hw == old_hw:
        return table
    first, rest = table[:1], table[1:]
    grid = F.interpolate(rest.T.reshape(1, -1, *old_hw).float(), size=new_hw, mode=mode, align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T.to(first.dtype)])


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTower(Tower):
    """Transformer blocks over patches and a class token, which becomes the embedding.

    Attributes:
        patch_weight: (D, 3, p, p).
        class_token: (D,).
        position_embedding: (1 + grid_h · grid_w, D), class position first.
        grid_hw: the grid of patches that it was trained on.
        output: (D, E), or None.
    """

    patch_weight: Tensor
    patch_bias: Tensor | None
    class_token: Tensor
    position_embedding: Tensor
    grid_hw: tuple[int, int]
    ln_pre: LayerNorm | None
    blocks: tuple[Block, ...]
    ln_post: LayerNorm
    output: Tensor | None
    mean: Tensor
    std: Tensor

    @property
    def kind(self) -> TowerKind:
        """See `Tower`."""
        return "class_token"

    @property
    def placement(self) -> Placement:
        """See `Tower`: a token stands for its patch."""
        return Placement(stride_px=self.patch_weight.shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        """See `Tower`."""
        return self.patch_weight.dtype

    def positions(self, grid_hw: tuple[int, int]) -> Tensor:
        """Position embedding (T, D) for a grid."""
        return resize_positions(self.position_embedding, self.grid_hw, grid_hw)

    def embed(self, rgb: Tensor) -> Tensor:
        """See `Tower.embed`: tokens (B, T, D), the class token first."""
        return self.tokens_of(self.normalised(rgb, planes=True).to(self.dtype))

    def tokens_of(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, height, width) in the tower's precision -> tokens (B, T, D) before the blocks."""
        x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=self.placement.stride_px)
        grid_hw = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1) + self.positions(grid_hw)
        return x if self.ln_pre is None else self.ln_pre(x)

    def tokens_before(self, rgb: Tensor, number: int, kept: int | None = None) -> tuple[Tensor, Tensor | None]:
        """What enters two blocks of one forward pass.

        Args:
            rgb: uint8 pixels (B, height, width, 3).
            number: Of the later block, from 0.
            kept: Of the earlier block, or the same. None: not wanted.

        Returns:
            Tokens (B, T, D) before the later block, and those before the earlier one.
        """
        x = self.embed(rgb)
        early: Tensor | None = None
        for index, block in enumerate(self.blocks[:number]):
            early = x if index == kept else early
            x = block(x)
        return x, x if kept == number else early

    def head(self, class_token: Tensor) -> Tensor:
        """Class token after the last block (..., D) -> embedding (..., E), not normalised."""
        e = self.ln_post(class_token)
        return e if self.output is None else e @ self.output

    def float_head(self) -> VisionTower:
        """The same tower with `ln_post` and `output` in float32."""
        return replace(self, ln_post=self.ln_post.float(), output=None if self.output is None else self.output.float())

    def encode(self, rgb: Tensor) -> Tensor:
        """See `Tower.encode`."""
        x = self.embed(rgb)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def pack_tower(tower: VisionTower, plain_blocks: int | None = None) -> VisionTower:
    """The same tower with packed weights in its blocks, where they help; for bulk work.

    In float32 on a CPU with AVX-512, products with many rows get 10 to 20 % faster than MKL's (ViT-B-16, AMD EPYC, 2
    cores), for half a digit of float32's precision. Elsewhere the tower stays as it is.

    Args:
        tower: The tower.
        plain_blocks: How many of the last blocks also keep their weights as they are, for gradients. The others keep
            what computes whole blocks forwards: their `weight` has a shape and no numbers. None: all keep them, for
            twice the memory.
    """
    weight = tower.patch_weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not (packing_pays() and can_pack()):
        return tower
    layers = len(tower.blocks)
    plain = layers if plain_blocks is None else plain_blocks
    return replace(
        tower,
        blocks=tuple(
            _pack_block(block, last=number == layers - 1, plain=number >= layers - plain)
            for number, block in enumerate(tower.blocks)
        ),
    )


def _pack_block(block: Block, *, last: bool, plain: bool) -> Block:
    """Keys and values alone are asked of the last block only; elsewhere `kv` stays a part of the plain `qkv`."""
    names = LINEARS if last else [name for name in LINEARS if name != "kv"]
    products: dict[str, Any] = {name: PackedLinear.of(getattr(block, name), plain=plain) for name in names}
    if not (last or plain):
        products["kv"] = replace(block.kv, weight=block.kv.weight.to("meta"))
    return replace(block, **products)


@dataclass(frozen=True, slots=True)
class PackedLinear(Linear):
    """A `Linear` that holds its weight packed; where a gradient is wanted it computes as `Linear` does."""

    packed: Tensor

    @classmethod
    def of(cls, linear: Linear, *, plain: bool = True) -> PackedLinear:
        """Pack a float32 weight on a CPU; not `plain`: `weight` has a shape and no numbers afterwards."""
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.contiguous())
        return cls(linear.weight if plain else linear.weight.to("meta"), linear.bias, packed)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        if x.requires_grad:
            return Linear.__call__(self, x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


def packing_pays() -> bool:
    """Whether oneDNN's packed products are the faster ones on this processor.

    They are with AVX-512. With AVX2 they are 74 GFLOP/s of one core where MKL's have 88 (AMD EPYC, the products of
    ViT-B-32), and equal on two. It is not measured at run time, because it decides the last bits.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def can_pack() -> bool:
    """Whether this torch has oneDNN's packed product, which torch's own compiler uses, and it works."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    x, ones = torch.ones(2, 16), torch.ones(16)
    try:
        y = PackedLinear.of(Linear(torch.eye(16), ones))(x)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return bool(torch.equal(y, x + 1))
