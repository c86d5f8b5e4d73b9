"""Captions alone: CLIP's own training, which is the baseline for regions."""

from __future__ import annotations

from typing import Literal

from pipeline.research.finetune.config import RecipeConfig
from pipeline.research.finetune.material import TrainingBatch
from pipeline.research.finetune.ranks import RankGroup
from pipeline.research.finetune.recipe import Recipe, Terms, caption_loss


class CaptionsConfig(RecipeConfig):
    """Captions alone."""

    kind: Literal["captions"] = "captions"


class Captions(Recipe[CaptionsConfig]):
    """The loss between images and captions."""

    config_type = CaptionsConfig

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        embedding = self.student.tower.encode(batch.rgb.to(self.student.device))
        loss = caption_loss(self.student, embedding, batch.captions, ranks)
        return {"captions": (self.config.caption_weight, loss)}
