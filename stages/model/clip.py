"""A CLIP model as explainers use it: an image tower, and a function that embeds texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.model.device import device_name
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
