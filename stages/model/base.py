"""What an explainer may ask of a CLIP model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.model.config import InputSpec
from stages.model.device import device_name
from stages.model.vision import VisionTower


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """An image tower taken apart, and a function that embeds texts.

    name         for people
    encode_text  texts -> (T, E) embeddings in any scale; the same text gives the same row whatever
                 its neighbours
    embed_dim    E
    """

    name: str
    tower: VisionTower
    input: InputSpec
    encode_text: Callable[[Sequence[str]], Tensor]
    embed_dim: int

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.tower.device

    @property
    def device_name(self) -> str:
        """The device for people: `cuda:0 NVIDIA H100 80GB HBM3`, or `cpu, 2 threads`."""
        return device_name(self.device)


@dataclass
class TextCache:
    """Unit text embeddings, each unique text computed once.

    With templates (each holding one `{}`) the unit embeddings of the filled templates are averaged
    and normalised again, as CLIP's zero-shot classifiers do.
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
