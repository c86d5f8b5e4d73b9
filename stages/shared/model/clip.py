"""A CLIP model as explainers use it: an image tower, and embeddings of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.shared.model.config import InputSpec
from stages.shared.model.device import device_name, is_fast
from stages.shared.model.towers.text import TextTower
from stages.shared.model.towers.tower import Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """A text tower taken apart, and its tokenizer: open_clip's `SimpleTokenizer`, texts -> int64 (T, context)."""

    tower: TextTower
    tokenizer: Any


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """An image tower, and a function that embeds texts.

    Attributes:
        name: Name for people.
        tower: The image tower.
        input: The images that it takes.
        encode_text: Texts -> (T, E) embeddings in any scale.
        embed_dim: E.
        text_side: Takes the text tower apart, which only the importance of words needs. Raises ConfigError, with the
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
        """The device that the model computes on."""
        return self.tower.device

    @property
    def device_name(self) -> str:
        """The device for people, see `device_name`, and the precision if the device computes it slowly."""
        precision = self.tower.dtype
        slow = "" if is_fast(precision, self.device) else f", slow in {str(precision).removeprefix('torch.')}"
        return device_name(self.device) + slow
