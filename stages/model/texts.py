"""Texts -> embeddings: each unique text once, and of the context only the tokens that it has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.model.clip import ClipModel
from stages.model.deferred import open_clip

TEXT_LENGTHS: Final = (4, 6, 8, 16, 32)
"""Token lengths that texts are cut to; longer ones get the model's full context. Of the phrases of 1,000 photographs,
64 % have at most 4 tokens with the two marks around them, 95 % at most 6, and all at most 12."""

TOKENS_PER_PASS: Final = {"cpu": 128, "cuda": 1024}
"""Tokens of one forward pass, about. Fewer do not repay reading the weights; more are often not full."""

FIRST_ROWS: Final = 256


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
    floats are 0.6 GB of the device's memory."""
    _places: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _free: list[int] = field(default_factory=list)
    _rows: Tensor | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (len(texts), E) of unit length on the model's device."""
        new = [text for text in dict.fromkeys(texts) if text not in self._places]
        if new:
            self._keep(new, self._embedded(new))
        for text in texts:
            self._places.move_to_end(text)
        assert self._rows is not None, "one text or more"  # noqa: S101
        out = self._rows[torch.tensor([self._places[text] for text in texts], device=self._rows.device)]
        while len(self._places) > self.max_texts:
            self._free.append(self._places.popitem(last=False)[1])
        return out

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        filled = [template.replace("{}", text) for text in texts for template in self.templates]
        e = F.normalize(self.model.encode_text(filled).float(), dim=-1)
        return F.normalize(e.unflatten(0, (len(texts), len(self.templates))).mean(dim=1), dim=-1)

    def _keep(self, texts: Sequence[str], embeddings: Tensor) -> None:
        """Note the embeddings in one matrix, from which many are then taken at once."""
        count = len(self._places) + len(self._free)
        wanted = count + max(0, len(texts) - len(self._free))
        held = 0 if self._rows is None else len(self._rows)
        if wanted > held:
            larger = embeddings.new_empty(max(wanted, 2 * held, FIRST_ROWS), embeddings.shape[1])
            if self._rows is not None:
                larger[:held] = self._rows
            self._rows = larger
        assert self._rows is not None  # noqa: S101
        unused = iter(range(count, wanted))
        places = [self._free.pop() if self._free else next(unused) for _ in texts]
        self._rows[torch.tensor(places, device=self._rows.device)] = embeddings
        self._places.update(zip(texts, places, strict=True))


def templates_of(named: Sequence[str] | str) -> tuple[str, ...]:
    """Text templates with `{}` for the phrase: the given ones, or the 80 that `openai_imagenet` stands for."""
    if named == "openai_imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(named)


def length_of(used: int, full: int) -> int:
    """The tokens that a text of `used` tokens is cut to, of a context of `full`."""
    return next((cut for cut in TEXT_LENGTHS if used <= cut < full), full)


def rows_of(length: int, device: torch.device) -> int:
    """Texts of one forward pass, if each has this number of tokens."""
    return -(-TOKENS_PER_PASS["cuda" if device.type == "cuda" else "cpu"] // length)


class TextEncoder:
    """Texts -> embeddings, in batches of one fixed shape, so that a text's row never depends on its neighbours.

    Short texts are cut to 4, 6, 8, 16 or 32 tokens instead of the model's 77: under a causal mask the tokens after the
    end-of-text token cannot reach it, so the embedding stays the same at a tenth of the cost.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        causal = getattr(model, "attn_mask", None) is not None
        self.can_cut = isinstance(model, open_clip.CLIP) and causal and model.text_pool_type == "argmax"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), E), in the model's dtype."""
        tokens: Tensor = self.tokenizer(list(texts))
        lengths = self._lengths(tokens)
        order: list[int] = []
        parts = []
        for length in sorted(set(lengths)):
            members = [place for place, own in enumerate(lengths) if own == length]
            rows = rows_of(length, self.device)
            for start in range(0, len(members), rows):
                part = members[start : start + rows]
                filled = tokens[part + [part[-1]] * (rows - len(part))].to(self.device)
                parts.append(self._encode(filled, length)[: len(part)])
                order += part
        return torch.cat(parts)[torch.tensor(order).argsort().to(self.device)]

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
