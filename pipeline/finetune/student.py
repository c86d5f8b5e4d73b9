"""The model that learns: open_clip's module, and the same weights taken apart for dense features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.shared.model.config import InputSpec
from stages.shared.model.towers.dense import DenseFeatures, by_boxes, dense
from stages.shared.model.towers.take_apart import take_apart, take_text_apart
from stages.shared.model.towers.text import TextTower
from stages.shared.model.towers.tower import Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A CLIP whose weights have gradients.

    Batch normalisation keeps its statistics and dropout does nothing, in training too, as is usual in fine-tuning.

    Attributes:
        module: open_clip's model, float32, whose parameters learn.
        tower: its image tower.
        text_tower: its text tower; None where it cannot be taken apart.
        tokenizer: texts -> int64 (T, context).
        spec: what its images look like.
    """

    module: Any
    tower: Tower
    text_tower: TextTower | None
    tokenizer: Any
    spec: InputSpec

    @classmethod
    def of(cls, module: Any, tokenizer: Any, spec: InputSpec) -> Student:
        """Take a module apart. Raises ConfigError where its image tower has no dense features."""
        try:
            text_tower = take_text_apart(module)
        except ConfigError:
            text_tower = None
        return cls(
            module=module,
            tower=take_apart(module.visual, spec.mean, spec.std, None),
            text_tower=text_tower,
            tokenizer=tokenizer,
            spec=spec,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tower.device

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with, learned."""
        scale: Tensor = self.module.logit_scale.exp()
        return scale

    def see(self, rgb: Tensor, *, residual: bool) -> DenseFeatures:
        """uint8 pixels (B, height, width, 3) -> features, see `dense`."""
        return dense(self.tower, rgb, residual=residual)

    def regions(self, seen: DenseFeatures, rgb: Tensor, rois: Tensor) -> Tensor:
        """Features of length 1 of boxes (R, 5), see `by_boxes`: (R, E)."""
        grid_hw = self.tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
        return by_boxes(seen.patches, grid_hw, self.tower.placement, rois.to(self.device))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1, (T, E). Words beyond the model's context are left out, as in CLIP's training."""
        tokens: Tensor = self.tokenizer(list(texts))
        if self.text_tower is None:
            embeddings = self.module.encode_text(tokens.to(self.device))
        else:
            longest = int(self.text_tower.ends_of(tokens).max()) + 1
            embeddings = self.text_tower.encode(tokens[:, :longest].to(self.device))
        return F.normalize(embeddings.float(), dim=-1)
