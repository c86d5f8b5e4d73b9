"""A CLIP model as explainers use it: an image tower, and embeddings of texts, each unique text once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.model.device import device_name, to_device
from phrasebox.stages.model.towers.tower import Tower


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
