"""Towers that average their tokens: ConvNeXt, and timm's other networks without an attention at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.shared.model.config import TowerKind
from stages.shared.model.towers.layers import Chain
from stages.shared.model.towers.tower import Placement, Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedTower(Tower):
    """A trunk whose tokens are averaged, and a head on their mean.

    Attributes:
        trunk: Normalised pixels (B, 3, height, width) in the trunk's precision -> tokens (B, N, D), row by row.
        finish: Mean of the tokens (B, D) -> embedding (B, E). Applied to one token it is the dense form of the head.
        dtype: Precision of the trunk.
    """

    placement: Placement
    trunk: Callable[[Tensor], Tensor]
    finish: Chain
    dtype: torch.dtype
    mean: Tensor
    std: Tensor

    @property
    def kind(self) -> TowerKind:
        """See `Tower`."""
        return "average_pool"

    def embed(self, rgb: Tensor) -> Tensor:
        """See `Tower.embed`."""
        return self.trunk(self.normalised(rgb).to(self.dtype))

    def float_head(self) -> AveragedTower:
        """The same tower with the head in float32."""
        return replace(self, finish=self.finish.float())

    def encode(self, rgb: Tensor) -> Tensor:
        """See `Tower.encode`."""
        return self.finish(self.embed(rgb).mean(dim=1))
