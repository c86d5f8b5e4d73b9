"""Each region learns the embedding of its phrase, without negatives."""

from typing import Literal

import torch
from pydantic import Field

from phrasebox.extend import RankGroup, Recipe, RecipeConfig, TrainingBatch, caption_loss, dense


class NearConfig(RecipeConfig):
    kind: Literal["near"] = "near"
    region_weight: float = Field(
        1.0, gt=0, description="Weight of the loss between regions and their phrases."
    )

    @property
    def needs_regions(self) -> bool:
        return True


class Near(Recipe[NearConfig]):
    config_type = NearConfig

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> dict[str, tuple[float, torch.Tensor]]:
        student = self.student
        rgb = batch.rgb.to(student.device)
        features = dense(student.tower, rgb)
        regions = student.regions(features, rgb, batch.rois)
        phrases = student.texts([*batch.phrases, ""])  # with one more, since there may be none
        cosines = ranks.gather_rows((regions * phrases[batch.phrase_indices]).sum(dim=1))
        captions = caption_loss(student, features.embedding, batch.captions, ranks)
        return {
            "captions": (self.config.caption_weight, captions),
            "regions": (self.config.region_weight, (1 - cosines).sum() / max(1, len(cosines))),
        }
