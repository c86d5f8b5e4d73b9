"""One trunk forward for all explainers that look at the same images.

A tower whose trunk is a function keeps what it gave last, and gives it again for the same pixels: for a batch, and for
its images one by one, which some explainers take. What asks for gradients through the trunk is computed anew. A
transformer with a class token has no such function: each explainer stops at another of its blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.pooled import PooledTower

KEPT: Final = 16
"""Calls that are remembered: a batch and its images."""


@dataclass(slots=True)
class RememberedTrunk:
    """A trunk that does not compute again what it computed a few calls ago."""

    trunk: Callable[[Tensor], Tensor]
    _known: deque[tuple[Tensor, Tensor]] = field(default_factory=partial(deque, maxlen=KEPT), init=False)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, height, width) -> tokens (B, T, D)."""
        if torch.is_grad_enabled() and pixels.requires_grad:
            return self.trunk(pixels)
        for seen, tokens in self._known:
            if seen.shape == pixels.shape and torch.equal(seen, pixels):
                return tokens
        tokens = self.trunk(pixels)
        self._known.append((pixels, tokens))
        return tokens


def remembering(model: ClipModel) -> ClipModel:
    """The same model with a trunk that remembers, where its tower has one."""
    tower = model.tower
    if isinstance(tower, PooledTower | AveragedTower):
        return replace(model, tower=replace(tower, trunk=RememberedTrunk(tower.trunk)))
    return model
