"""A CLIP text transformer with a causal mask: its weights as plain tensors, its blocks as functions.

The last row of the text, its end token, makes the embedding. Under the causal mask no earlier
token sees that row, and the row sees no later token.

Shapes: B texts, T tokens of the context, V tokens of the vocabulary, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.shared.model.towers.layers import Layer, LayerNorm
from stages.shared.model.towers.vision import Block, attend_causally


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """Transformer blocks over the tokens of a text. A token sees the tokens before it.

    Attributes:
        token_embedding: (V, D).
        position_embedding: (T, D).
        dtype: Precision of the blocks.
        blocks: The blocks.
        ln_post: Norm of the row that makes the embedding.
        output: Projection of that row, or nothing.
        end: Number of the token that ends a text; None: the highest number of a text.
    """

    token_embedding: Tensor
    position_embedding: Tensor
    dtype: torch.dtype
    blocks: tuple[Block, ...]
    ln_post: LayerNorm
    output: Layer
    end: int | None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.position_embedding.device

    def embed(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> tokens (B, T', D) before the blocks, for T' <= T."""
        x = self.token_embedding[tokens].to(self.dtype)
        return x + self.position_embedding[: tokens.shape[1]].to(self.dtype)

    def ends_of(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> the place of the row that makes the embedding, int64 (B,)."""
        return (tokens if self.end is None else (tokens == self.end).int()).argmax(dim=-1)

    def head(self, row: Tensor) -> Tensor:
        """Return the row behind the last block (..., D) -> embedding (..., E), not normalised."""
        return self.output(self.ln_post(row))

    def encode(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> embeddings (B, E), not normalised."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block.finish(x, attend_causally(*block.project(x), block.heads))
        return self.head(x[torch.arange(len(x), device=x.device), self.ends_of(tokens)])
