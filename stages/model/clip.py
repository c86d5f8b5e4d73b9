"""What an explainer may ask of a CLIP model: an image tower, and embeddings of texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.model.config import InputSpec
from stages.model.device import device_name, is_fast
from stages.model.towers.text import TextTower
from stages.model.towers.tower import Tower

TEXT_LENGTHS: Final = (16, 32)
"""Token lengths that short texts are cut to; longer ones get the model's full context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """A text tower taken apart, and the tokenizer that it was trained with.

    Attributes:
        tower: the tower.
        tokenizer: open_clip's `SimpleTokenizer`, texts -> int64 (T, context).
    """

    tower: TextTower
    tokenizer: Any


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """An image tower, and a function that embeds texts.

    Attributes:
        name: for people.
        tower: the image tower.
        input: what its images look like.
        encode_text: texts -> (T, E) embeddings in any scale. The same text gives the same row, whatever its neighbours.
        embed_dim: E.
        text_side: takes the text tower apart, which only the importance of words needs. Raises ConfigError, with the
            reason, where it is not defined on it.
    """

    name: str
    tower: Tower
    input: InputSpec
    encode_text: Callable[[Sequence[str]], Tensor]
    embed_dim: int
    text_side: Callable[[], TextSide]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.tower.device

    @property
    def device_name(self) -> str:
        """The device for people: `cuda:0 NVIDIA H100 80GB HBM3`, or `cpu, 2 threads`.

        A precision that the device computes slowly is named, too.
        """
        precision = self.tower.dtype
        slow = "" if is_fast(precision, self.device) else f", slow in {str(precision).removeprefix('torch.')}"
        return device_name(self.device) + slow


@dataclass
class TextCache:
    """Unit text embeddings; each unique text is computed once.

    With templates (each holds one `{}`) the unit embeddings of the filled templates are averaged and normalised again,
    as CLIP's zero-shot classifiers do.
    """

    model: ClipModel
    templates: tuple[str, ...] = ("{}",)
    max_texts: int = 200_000
    """Beyond this number the texts that were not used for the longest time are forgotten. 200,000 embeddings of 768
    floats are 0.6 GB."""
    _rows: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (len(texts), E) of unit length on the model's device."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            filled = [template.replace("{}", text) for text in new for template in self.templates]
            e = F.normalize(self.model.encode_text(filled).float(), dim=-1)
            e = F.normalize(e.unflatten(0, (len(new), len(self.templates))).mean(dim=1), dim=-1)
            # Copies: a view would keep the embeddings of all texts that were new with it.
            self._rows.update(zip(new, (row.clone() for row in e.cpu()), strict=True))
        for text in texts:
            self._rows.move_to_end(text)
        out = torch.stack([self._rows[text] for text in texts]).to(self.model.device)
        while len(self._rows) > self.max_texts:
            self._rows.popitem(last=False)
        return out


def templates_of(named: Sequence[str] | str) -> tuple[str, ...]:
    """Text templates with `{}` for the phrase: the given ones, or the 80 that `openai_imagenet` stands for."""
    if named == "openai_imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(named)


def rows_of(device: torch.device) -> int:
    """Texts of one forward pass."""
    return 64 if device.type == "cuda" else 8


def length_of(used: int, full: int) -> int:
    """The tokens that a text of `used` tokens is cut to, of a context of `full`."""
    return next((cut for cut in TEXT_LENGTHS if used <= cut < full), full)


class TextEncoder:
    """Texts -> embeddings, in batches of one fixed shape, so that a text's row never depends on its neighbours.

    Short texts are cut to 16 or 32 tokens instead of the model's 77: under a causal mask the tokens after the
    end-of-text token cannot reach it, so the embedding stays the same at a fifth of the cost.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.rows = rows_of(self.device)
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
        return [length_of(n, full) for n in used]

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
