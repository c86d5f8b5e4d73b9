"""A CLIP vision transformer: its weights as plain tensors, its blocks as functions.

The model that the weights come from is only read. All functions are differentiable in their
tokens and their weights; the weights that an explainer gets carry no gradient.

Shapes: B images, N patches, R registers, T = 1 + R + N tokens (the class token first, the
registers behind it), D width, H heads, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.model.config import TowerKind
from phrasebox.stages.model.towers.layers import (
    Layer,
    LayerNorm,
    Linear,
    Part,
    TensorFunction,
    to_float,
)
from phrasebox.stages.model.towers.tower import Placement, Tower

Heads = int  # Number of attention heads: the network's own, or 1 as in the authors' Grad-ECLIP code


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Part):
    """One residual attention block: `y = x + ls_1(attention(ln_1(x)))`, then `y + ls_2(mlp(ln_2(y)))`."""

    heads: int
    ln_1: LayerNorm
    qkv: Linear
    out: Linear
    ls_1: Tensor | None
    ln_2: LayerNorm
    fc: Linear
    activation: TensorFunction
    proj: Linear
    ls_2: Tensor | None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (..., T, D) -> queries, keys, values, each (..., T, D), heads side by side."""
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        return q, k, v

    def project_heads(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens behind `ln_1` (B, T, D) -> queries, keys, values, each (B, H, T, D / H)."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(z).chunk(3, dim=-1))
        return q, k, v

    def attended(self, o: Tensor) -> Tensor:
        """Outputs of the attention, before the projection -> what the block adds to its tokens first; (..., D)."""
        a = self.out(o)
        return a if self.ls_1 is None else a * self.ls_1

    def mlp(self, z: Tensor) -> Tensor:
        """Tokens behind `ln_2` -> what the block adds to its tokens then; (..., D)."""
        m = self.proj(self.activation(self.fc(z)))
        return m if self.ls_2 is None else m * self.ls_2

    def finish(self, x: Tensor, o: Tensor) -> Tensor:
        """Tokens x before the block and outputs o of its attention, before the projection -> tokens; (..., D)."""
        y = x + self.attended(o)
        return y + self.mlp(self.ln_2(y))

    def __call__(self, x: Tensor) -> Tensor:
        """Send all tokens (B, T, D) through the block."""
        return self.finish(x, attend(*self.project(x), self.heads))


def split_heads(x: Tensor, heads: Heads) -> Tensor:
    """(B, T, D) -> (B, H, T, D / H)."""
    heads_apart: Tensor = x.unflatten(-1, (heads, -1))
    return heads_apart.transpose(-3, -2)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Queries (B, H, Tq, d) and keys (B, H, T, d) -> weights (B, H, Tq, T), rows sum to 1."""
    weights: Tensor = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D / H) -> (B, T, D)."""
    return x.transpose(-3, -2).flatten(-2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: Heads, *, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Scaled dot-product attention, (B, Tq, D) and (B, T, D) twice -> (B, Tq, D) before the projection.

    The scale is (D / heads) ** -0.5: with one head D ** -0.5, as in the authors' code. `mask` says which tokens
    a query sees, (B, 1, Tq, T). If `is_causal` it sees none behind itself.
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal))


Interpolation = Literal["bicubic", "bilinear", "averaging"]
"""Ways to resize a grid of positions; `averaging` is bilinear, and smooths where the grid gets smaller."""


def resize_grid(table: Tensor, old_hw: Sides, new_hw: Sides, mode: Interpolation) -> Tensor:
    """Interpolate a position embedding (old_h · old_w, D) to another grid."""
    if new_hw == old_hw:
        return table
    grid = F.interpolate(
        table.T.reshape(1, -1, *old_hw).float(),
        size=new_hw,
        mode="bilinear" if mode == "averaging" else mode,
        align_corners=False,
        antialias=mode == "averaging",
    )
    return grid.flatten(2)[0].T.to(table.dtype)


def resize_positions(
    table: Tensor, old_hw: Sides, new_hw: Sides, mode: Interpolation = "bicubic"
) -> Tensor:
    """Interpolate a position embedding (1 + old_h · old_w, D), but for the class position in front, to another grid.

    Bicubically as in Grad-ECLIP's preprocessing, bilinearly as FC-CLIP (arXiv 2308.02487) does
    for CLIP's ResNets, or averaging as TIPSv2 and SigLIP 2 do.
    """
    if new_hw == old_hw:
        return table
    return torch.cat([table[:1], resize_grid(table[1:], old_hw, new_hw, mode)])


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTower(Tower):
    """Transformer blocks over patches and a class token, which becomes the embedding.

    Attributes:
        patch_weight: Kernel that embeds patches of p pixels a side (D, 3, p, p).
        patch_bias: Bias of the patches (D,).
        class_token: (D,).
        position_embedding: (1 + grid_h · grid_w, D), class position first.
        interpolation: How positions are resized to other grids.
        registers: Tokens without a place (R, D), which join behind the positions, such as a
            second class token; None: none.
        grid_hw: The grid of patches in training.
        ln_pre: Norm before the blocks, or nothing.
        blocks: The blocks.
        ln_post: Norm of the class token behind the blocks.
        output: Projection of the class token (D, E); None: no projection.
    """

    patch_weight: Tensor
    patch_bias: Tensor | None
    class_token: Tensor
    position_embedding: Tensor
    interpolation: Interpolation = "bicubic"
    registers: Tensor | None = None
    grid_hw: Sides
    ln_pre: Layer
    blocks: tuple[Block, ...]
    ln_post: LayerNorm
    output: Tensor | None
    mean: Tensor
    std: Tensor
    kind: TowerKind = "class_token"

    @property
    def placement(self) -> Placement:
        """See `Tower`: a token stands for its patch."""
        return Placement(stride_px=self.patch_weight.shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        """See `Tower`."""
        return self.patch_weight.dtype

    @property
    def prefix_tokens(self) -> int:
        """Number of the first tokens that are no patches: the class token and the registers."""
        return 1 if self.registers is None else 1 + len(self.registers)

    def positions(self, grid_hw: Sides) -> Tensor:
        """Return the position embedding of the class token and the patches (1 + N, D) for a grid."""
        return resize_positions(self.position_embedding, self.grid_hw, grid_hw, self.interpolation)

    def embed(self, rgb: Tensor) -> Tensor:
        """See `Tower.embed`: tokens (B, T, D), the class token first."""
        return self.tokens_of(self.normalise(rgb).to(self.dtype))

    def tokens_of(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, height, width) in the tower's precision -> tokens (B, T, D) before the blocks."""
        x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=self.placement.stride_px)
        grid_hw = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1) + self.positions(grid_hw)
        if self.registers is not None:
            x = torch.cat([x[:, :1], self.registers.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        return self.ln_pre(x)

    def tokens_before(
        self, rgb: Tensor, number: int, early_number: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 pixels (B, height, width, 3) -> tokens (B, T, D) before a block, and before an earlier one.

        Blocks have numbers from 0. Without `early_number` the second result is None.
        """
        x = self.embed(rgb)
        early: Tensor | None = None
        for index, block in enumerate(self.blocks[:number]):
            early = x if index == early_number else early
            x = block(x)
        return x, x if early_number == number else early

    def head(self, class_token: Tensor) -> Tensor:
        """Class token after the last block (..., D) -> embedding (..., E), not normalised."""
        e = self.ln_post(class_token)
        return e if self.output is None else e @ self.output

    def float_head(self) -> VisionTower:
        """Return the same tower with `ln_post` and `output` in float32."""
        return replace(self, ln_post=to_float(self.ln_post), output=to_float(self.output))

    def encode(self, rgb: Tensor) -> Tensor:
        """See `Tower.encode`."""
        x = self.embed(rgb)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])
