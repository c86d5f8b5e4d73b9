"""One trunk forward for all explainers that look at the same images.

A tower whose trunk is a function keeps what it gave last, and gives it again for the same pixels. What asks for
gradients through the trunk is computed anew. A transformer with a class token has no such function: each explainer
stops at another of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stages.model.clip import ClipModel
from stages.model.towers.averaged import AveragedTower
from stages.model.towers.pooled import PooledTower


@dataclass(slots=True)
class RememberedTrunk:
    """A trunk that is not computed twice in a row for the same pixels."""

    trunk: Callable[[Tensor], Tensor]
    _pixels: Tensor | None = field(default=None, init=False)
    _tokens: Tensor | None = field(default=None, init=False)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, height, width) -> tokens (B, T, D)."""
        if torch.is_grad_enabled() and pixels.requires_grad:
            return self.trunk(pixels)
        if self._tokens is None or self._pixels is None or not _same(self._pixels, pixels):
            self._pixels, self._tokens = pixels, self.trunk(pixels)
        return self._tokens


def remembering(model: ClipModel) -> ClipModel:
    """The same model with a trunk that remembers, where its tower has one."""
    tower = model.tower
    if isinstance(tower, PooledTower | AveragedTower):
        return replace(model, tower=replace(tower, trunk=RememberedTrunk(tower.trunk)))
    return model


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
