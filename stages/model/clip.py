"""A CLIP model as explainers use it: an image tower, and embeddings of texts, each unique text once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.model.device import device_name, to_device
from phrasebox.stages.model.dual_encoder import DualEncoder, MaskedTexts
from phrasebox.stages.model.towers.tower import Tower
from phrasebox.stages.model.towers.trunk import private_copy

TOKENS_PER_PASS: Final = 4096  # The most tokens of one forward pass, which bounds its memory

PASS_COST: Final = 40
"""A forward pass costs as much as so many tokens, whatever it embeds (measured: ViT-B-32's texts
in bf16 on 2 cores). Captions of 10 to 26 tokens take two thirds of the time of exact lengths."""


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """An image tower, and a function that embeds texts.

    Attributes:
        name: Name for people.
        tower: The image tower.
        input: The images that the tower takes.
        encode_text: Texts -> embeddings (T, E) in any scale.
        logit_scale: Factor of cosines in the model's logits, > 0.
        logit_bias: Bias of the logits in a model of pairs (SigLIP); None: a model of batches.
    """

    name: str
    tower: Tower
    input: InputSpec
    encode_text: Callable[[Sequence[str]], Tensor]
    logit_scale: float
    logit_bias: float | None

    @cached_property
    def embed_dim(self) -> int:
        """E, the numbers in an embedding."""
        return self.encode_text([""]).shape[1]

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.tower.device

    @property
    def device_name(self) -> str:
        """Name of the device for people."""
        return device_name(self.device)


@dataclass
class TextCache:
    """Unit text embeddings; each unique text is computed once.

    With templates (each holds one `{}`) the unit embeddings of the filled templates are
    averaged and normalised again, as CLIP's zero-shot classifiers do. Beyond `max_texts` the
    least recently used texts are forgotten; 200,000 embeddings of 768 floats are 0.6 GB of the
    device's memory. `set_aside` keeps `max_aside` more.
    """

    model: ClipModel
    templates: tuple[str, ...] = ("{}",)
    max_texts: int = 200_000
    max_aside: int = 4096
    _rows: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)
    _aside: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (len(texts), E) of unit length on the model's device."""
        self._embed(texts)
        embeddings = torch.stack([self._rows[text] for text in texts])
        self._forget()
        return embeddings

    def embed_ahead(self, texts: Sequence[str]) -> None:
        """Embed texts that are needed next: many in one call fill the forward passes."""
        self._embed(texts)
        self._forget()

    def set_aside(self, texts: Iterable[str]) -> None:
        """Forget texts that seldom come again, such as captions, once `max_aside` others have followed them."""
        for text in texts:
            row = self._rows.pop(text, None)
            if row is not None:
                self._aside[text] = row
        while len(self._aside) > self.max_aside:
            self._aside.popitem(last=False)

    def embed_padded(self, texts: Sequence[Sequence[str]], step: int) -> Tensor:
        """Texts of B images, not all without texts -> float32 (B, P, E) on the model's device.

        P is the largest number of texts, rounded up to a multiple of `step`; rows of zeros
        stand for missing texts.
        """
        flat = self([text for texts_of_image in texts for text in texts_of_image])
        longest = -(-max(map(len, texts)) // step) * step
        present = (
            torch.arange(longest) < torch.tensor([len(texts_of_image) for texts_of_image in texts])[:, None]
        )
        # Numbers instead of a mask: a GPU's host would wait for the number of its rows. Padding
        # image by image would launch as many copies as there are images.
        places = to_device(present.flatten().nonzero().flatten(), flat.device)
        out = flat.new_zeros(len(texts) * longest, flat.shape[-1])
        out[places] = flat
        embeddings: Tensor = out.unflatten(0, (len(texts), longest))
        return embeddings

    def _embed(self, texts: Sequence[str]) -> None:
        self._rows.update(
            (text, self._aside.pop(text)) for text in dict.fromkeys(texts) if text in self._aside
        )
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            prompts = [template.replace("{}", text) for text in new for template in self.templates]
            e = F.normalize(self.model.encode_text(prompts).float(), dim=-1)
            rows = F.normalize(e.unflatten(0, (len(new), len(self.templates))).mean(dim=1), dim=-1)
            # A view would keep the embeddings of all the texts that it was computed with.
            self._rows.update((text, row.clone()) for text, row in zip(new, rows, strict=True))
        for text in texts:
            self._rows.move_to_end(text)

    def _forget(self) -> None:
        while len(self._rows) > self.max_texts:
            self._rows.popitem(last=False)


def templates_of(setting: Sequence[str] | str) -> tuple[str, ...]:
    """Return the text templates of a setting, with `{}` for the phrase; `openai_imagenet` stands for its 80."""
    if setting == "openai_imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(setting)


@dataclass(frozen=True, slots=True)
class TextTower:
    """A causal text transformer of open_clip, computed by its own layers, for texts that are cut off behind their end.

    The row of a text's end token makes the embedding, and no token sees those behind it. Shapes:
    B texts, T' tokens, at most those of the context, E embedding.

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
        row: Tensor = parts.ln_final(x[torch.arange(len(x), device=x.device), self.ends_of(tokens)])
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


class TextEncoder:
    """Texts -> embeddings. Texts of similar lengths share forward passes.

    Under a causal mask the tokens behind the end of a text cannot reach it, so they are cut
    off: phrases of 1,000 photographs have 4.3 tokens on average, and the model's context has
    77. Text towers without such a mask embed the whole context.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.model = private_copy(model, None)  # in evaluation mode: a text tower may have dropout
        self.model._modules.pop("visual", None)  # texts do not need the memory of the image tower
        self.tower: TextTower | MaskedTexts | None
        self.tower = self.model.texts if isinstance(self.model, DualEncoder) else text_tower_of(self.model)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (len(texts), E), in the model's dtype."""
        tokens: Tensor = self.tokenizer(list(texts))
        if self.tower is None:
            encode = self.model.encode_text
            lengths = torch.full((len(tokens),), tokens.shape[1])
        else:
            encode = self.tower.encode
            lengths = self.tower.ends_of(tokens) + 1
        order = []
        parts = []
        for length, rows in split_by_length(lengths):
            order.append(rows)
            parts.append(encode(to_device(tokens[rows, :length], self.device)))
        return torch.cat(parts)[to_device(torch.cat(order).argsort(), self.device)]


def split_by_length(lengths: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Split texts for forward passes by their lengths in tokens, int (T,), the longest first.

    Yield the length that a pass needs, and the numbers of its texts. Shorter texts join a pass
    while their padding costs less than a pass of their own.
    """
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    start = 0
    padding = 0
    for place, tokens in enumerate(sizes):
        padding += sizes[start] - tokens
        is_full = place > start and (place + 1 - start) * sizes[start] > TOKENS_PER_PASS
        if is_full or padding > PASS_COST:
            yield sizes[start], order[start:place]
            start = place
            padding = 0
    if sizes:
        yield sizes[start], order[start:]
