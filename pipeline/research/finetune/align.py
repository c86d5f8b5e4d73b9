"""Align regions with phrases: the default recipe.

As in FG-CLIP's second stage (arXiv 2505.05071), there are two losses: between images and
captions, and between the features of boxes and the phrases of the batch, with a separate
temperature. Grad-ECLIP's authors also fine-tune on their pseudo regions (arXiv 2502.18816);
their code and settings are not published.

The same phrase on several regions is one text with several positives. A phrase is no negative
of a region at the same place of its image: both names may be true ("young boy" and "boy in
blue").

Shapes: R regions and U phrases of all ranks, E embedding.
"""

from __future__ import annotations

from typing import Final

import torch
import torchvision
from torch import Tensor, nn

from phrasebox.pipeline.research.finetune.config import AlignConfig
from phrasebox.pipeline.research.finetune.material import TrainingBatch
from phrasebox.pipeline.research.finetune.ranks import RankGroup
from phrasebox.pipeline.research.finetune.recipe import (
    Recipe,
    Student,
    Terms,
    caption_loss,
    contrastive_loss,
    logits_of,
)
from phrasebox.stages.model.towers.dense import dense

SAME_PLACE_IOU: Final = 0.5  # boxes of one image that overlap this much may bear each other's names


class Align(Recipe[AlignConfig]):
    """The loss between images and captions, and the one between regions and phrases."""

    config_type = AlignConfig

    def __init__(self, config: AlignConfig, student: Student) -> None:
        super().__init__(config, student)
        self._log_scale = nn.Parameter(student.module.logit_scale.detach().clone())

    def extra_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See `Recipe.extra_parameters`."""
        return [("region_logit_scale", self._log_scale)]

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        student = self.student
        config = self.config
        rgb = batch.rgb.to(student.device)
        features = dense(student.tower, rgb)
        regions = ranks.gather_rows(student.regions(features, rgb, batch.rois))
        phrases, positive, ambiguous = self._pairs(batch, ranks)
        logits = logits_of(ranks.with_one_gradient(self._log_scale.exp()), regions, phrases)
        captions_loss = caption_loss(student, features.embedding, batch.captions, ranks)
        regions_loss = contrastive_loss(logits, positive, ambiguous)
        return {
            "captions": (config.caption_weight, captions_loss),
            "regions": (config.region_weight, regions_loss),
        }

    def _pairs(self, batch: TrainingBatch, ranks: RankGroup) -> tuple[Tensor, Tensor, Tensor]:
        """Return the phrases' embeddings (U, E), and which pairs are positive and which ambiguous, bool (R, U)."""
        device = self.student.device
        # With one more text, since a rank may have no phrase.
        embeddings = ranks.gather_rows(self.student.texts([*batch.phrases, ""])[:-1])
        firsts: dict[str, int] = {}
        for place, text in enumerate(ranks.gather_items(batch.phrases)):
            firsts.setdefault(text, place)
        numbers = {text: number for number, text in enumerate(firsts)}
        region_phrases = [batch.phrases[number] for number in batch.phrase_indices.tolist()]
        columns = torch.tensor(
            [numbers[text] for text in ranks.gather_items(region_phrases)], dtype=torch.int64, device=device
        )
        positive = torch.zeros(len(columns), len(firsts), dtype=torch.bool, device=device)
        positive[torch.arange(len(columns), device=device), columns] = True
        places = self._same_place(batch, ranks).to(device)
        ambiguous = (places.float() @ positive.float()) > 0
        return (
            embeddings[torch.tensor(list(firsts.values()), dtype=torch.int64)],
            positive,
            ambiguous & ~positive,
        )

    def _same_place(self, batch: TrainingBatch, ranks: RankGroup) -> Tensor:
        """Return which pairs of regions are in one image and overlap, bool (R, R)."""
        parts = []
        for rois in ranks.gather_objects(batch.rois):
            overlap = torchvision.ops.box_iou(rois[:, 1:], rois[:, 1:]) >= SAME_PLACE_IOU
            parts.append(overlap & (rois[:, :1] == rois[:, 0]))
        blocks: Tensor = torch.block_diag(*parts)
        return blocks.bool()
