"""A second path beside a transformer's last blocks, on which patches keep their own meaning.

The blocks compute as they always do. Beside them run copies of the tokens, to which each block adds what its attention
would give if it mixed the values otherwise; the MLPs have no part in it:

    x   <- the block, as ever                                    from which the mixing takes queries, keys and values
    x'  <- x' + ls_1((A' v) W_out + b_out)                       x' = x before the first of the blocks
    y_i = proj(ln_post(x'_i)), i = 1 .. N

How A' is made is the method's: CLIP Surgery (arXiv 2304.05653) and GEM (arXiv 2312.00878). There is no gradient.

Shapes: B images, H heads, N patches, T = N + 1 tokens (the class token first), D width, d = D / H, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.shared.model.towers.vision import VisionTower, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What an attention has, float32.

    Attributes:
        normed: (B, T, D), the tokens that queries, keys and values are made of.
        q, k, v: (B, H, T, d).
    """

    normed: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


Mixing = Callable[[Looked], Tensor]
"""What an attention has -> A' v, (B, H, T, d)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """What the patches and the images of a batch mean, in any scale.

    Attributes:
        patches: (B, N, E), float32.
        embedding: (B, E), float32, of the whole images by the path as ever.
        tokens: See `Maps.tokens`.
    """

    patches: Tensor
    embedding: Tensor
    tokens: Tensor | None


class SecondPath:
    """The second path of a transformer with a class token.

    Args:
        tower: The transformer, which is only read.
        blocks: How many of its last blocks have a second path, at most.
        kept: Number of the block, from 0, whose incoming patches are `Dense.tokens`; None if nobody wants them.
        mixing: How these blocks mix their values on it.
    """

    def __init__(self, tower: VisionTower, blocks: int, kept: int | None, mixing: Mixing) -> None:
        self.tower = tower.float_head()
        self.first = max(0, len(tower.blocks) - blocks)
        self.blocks = tuple(block.float() for block in tower.blocks[self.first :])
        self.kept, self.mixing = kept, mixing

    @torch.no_grad()
    def __call__(self, rgb: Tensor) -> Dense:
        """uint8 pixels (B, height, width, 3) -> what patches and images mean."""
        x, early = self.tower.tokens_before(rgb, self.first, self.kept)
        x = second = x.float()
        for number, block in enumerate(self.blocks, self.first):
            early = x if number == self.kept else early
            normed = block.ln_1(x)
            q, k, v = (split_heads(part, block.heads) for part in block.qkv(normed).chunk(3, dim=-1))
            mixed = block.out(_joined(self.mixing(Looked(normed=normed, q=q, k=k, v=v))))
            second = second + (mixed if block.ls_1 is None else mixed * block.ls_1)
            x = block.finish(x, _joined(F.scaled_dot_product_attention(q, k, v)))
        return Dense(
            patches=self.tower.head(second[:, 1:]),
            embedding=self.tower.head(x[:, 0]),
            tokens=None if early is None else early[:, 1:],
        )


def _joined(heads: Tensor) -> Tensor:
    """(B, H, T, d) -> (B, T, D)."""
    return heads.transpose(1, 2).flatten(2)
