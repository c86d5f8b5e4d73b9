"""Texts -> embeddings with an open_clip model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import open_clip
import torch
from torch import Tensor, nn

TEXT_LENGTHS: Final = (16, 32)
"""Token lengths that short texts are cut to; longer ones get the model's full context."""


def templates_of(named: Sequence[str] | str) -> tuple[str, ...]:
    """Text templates with `{}` for the phrase: the given ones, or the 80 that `openai_imagenet` stands for."""
    if named == "openai_imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(named)


class TextEncoder:
    """Texts -> embeddings, in batches of one fixed shape, so that a text's row never depends on its neighbours.

    Short texts are cut to 16 or 32 tokens instead of the model's 77: under a causal mask the tokens
    after the end-of-text token cannot reach it, so the embedding stays the same at a fifth of the cost.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.rows = 64 if self.device.type == "cuda" else 8
        causal = getattr(model, "attn_mask", None) is not None
        self.can_cut = isinstance(model, open_clip.CLIP) and causal and model.text_pool_type == "argmax"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), E), in the model's dtype."""
        tokens: Tensor = self.tokenizer(list(texts)).to(self.device)
        lengths = self._lengths(tokens)
        out: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            members = [i for i, own in enumerate(lengths) if own == length]
            for start in range(0, len(members), self.rows):
                rows = members[start : start + self.rows]
                batch = tokens[rows + [rows[-1]] * (self.rows - len(rows))]
                out.update(zip(rows, self._encode(batch, length), strict=False))
        return torch.stack([out[i] for i in range(len(texts))])

    def _lengths(self, tokens: Tensor) -> list[int]:
        full = tokens.shape[1]
        if not self.can_cut:
            return [full] * len(tokens)
        used = (tokens.argmax(dim=1) + 1).tolist()  # the end-of-text token has the highest number
        return [next((cut for cut in TEXT_LENGTHS if n <= cut < full), full) for n in used]

    def _encode(self, tokens: Tensor, length: int) -> Tensor:
        model = self.model
        if length == tokens.shape[1]:
            full: Tensor = model.encode_text(tokens)
            return full
        tokens = tokens[:, :length]
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        x = x[torch.arange(len(x)), tokens.argmax(dim=1)]
        projection = model.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        cut: Tensor = x
        return cut
