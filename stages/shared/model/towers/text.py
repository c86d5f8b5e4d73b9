"""The text side of an open_clip model, for texts that are cut off behind their end.

The row of a text's end token makes the embedding. Under a causal mask no earlier token sees the
tokens behind it, so they need not be computed.

Shapes: B texts, T' tokens, at most those of the context, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextTower:
    """A causal text transformer of open_clip, computed by its own layers.

    Attributes:
        module: The part of open_clip's model that holds the layers of texts.
        end: Number of the token that ends a text; None: the highest number of a text.
    """

    module: Any
    end: int | None

    def ends_of(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> the place of the row that makes the embedding, int64 (B,)."""
        return (tokens if self.end is None else (tokens == self.end).int()).argmax(dim=-1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Numbers of tokens (B, T') -> embeddings (B, E), not normalised."""
        parts = self.module
        length = tokens.shape[1]
        dtype = parts.transformer.get_cast_dtype()
        x = parts.token_embedding(tokens).to(dtype) + parts.positional_embedding[:length].to(dtype)
        x = parts.transformer(x, attn_mask=parts.attn_mask[:length, :length])
        row = parts.ln_final(x[torch.arange(len(x), device=x.device), self.ends_of(tokens)])
        projection = parts.text_projection
        if isinstance(projection, Tensor):
            return row @ projection
        embedding: Tensor = row if projection is None else projection(row)
        return embedding


def text_tower_of(model: Any) -> TextTower | None:
    """Return the text tower of an open_clip model; None if tokens behind the end of a text count in its embedding."""
    module = getattr(model, "text", model)
    pool = getattr(module, "text_pool_type", getattr(module, "pool_type", None))
    has_class_token = getattr(module, "cls_emb", None) is not None
    if getattr(module, "attn_mask", None) is None or has_class_token or pool not in ("argmax", "eos"):
        return None
    end = getattr(module, "text_eos_id", getattr(module, "eos_id", None))
    return TextTower(module, None if pool == "argmax" else end)
