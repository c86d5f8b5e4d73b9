"""Regions against phrases: what the regions of a dataset are for.

As in FG-CLIP's second stage (arXiv 2505.05071), the loss between images and captions goes on, and beside it stands one
between the features of boxes and the phrases of the batch, with a temperature of its own. Grad-ECLIP's authors
fine-tune on their pseudo regions, too (arXiv 2502.18816); their code and settings are not published.

The same phrase on several regions is one text with several positives. A phrase is no negative of a region of the same
image that lies at the same place: both names may be true of it ("young boy" and "boy in blue").

Shapes: R regions and U phrases of all ranks, E embedding.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from pipeline.finetune.config import AlignConfig
from pipeline.finetune.material import TrainingBatch
from pipeline.finetune.ranks import RankGroup
from pipeline.finetune.recipe import Recipe, Student, Terms, caption_loss, contrastive, logits_of


class Align(Recipe[AlignConfig]):
    """The loss between images and captions, and the one between regions and phrases."""

    config_type = AlignConfig
    needs_regions = True

    def __init__(self, config: AlignConfig, student: Student) -> None:
        super().__init__(config, student)
        self._log_scale = nn.Parameter(student.module.logit_scale.detach().clone())

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See `Recipe.own_parameters`."""
        return [("region_logit_scale", self._log_scale)]

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        student = self.student
        config = self.config
        rgb = batch.rgb.to(student.device)
        seen = student.see(rgb, residual=config.residual)
        regions = ranks.everyone(student.regions(seen, rgb, batch.rois))
        phrases, positive, ignored = self._pairs(batch, ranks)
        logits = logits_of(ranks.once(self._log_scale.exp()), regions, phrases)
        scores = ranks.everyone(batch.scores.to(student.device))
        weights = scores if config.weigh_by == "score" else None
        return {
            "captions": (config.caption_weight, caption_loss(student, seen.embedding, batch.captions, ranks)),
            "regions": (config.region_weight, contrastive(logits, positive, ignored, weights)),
        }

    def _pairs(self, batch: TrainingBatch, ranks: RankGroup) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings of all ranks' phrases, each once (U, E); whose they are, and ignored pairs, both (R, U)."""
        device = self.student.device
        # One more text, which is cut off: a rank may have no phrase.
        embeddings = ranks.everyone(self.student.texts([*batch.phrases, ""])[:-1])
        firsts: dict[str, int] = {}
        for place, text in enumerate(ranks.items(batch.phrases)):
            firsts.setdefault(text, place)
        numbers = {text: number for number, text in enumerate(firsts)}
        named = [batch.phrases[number] for number in batch.phrase_indices.tolist()]
        columns = torch.tensor([numbers[text] for text in ranks.items(named)], dtype=torch.int64, device=device)
        positive = torch.zeros(len(columns), len(firsts), dtype=torch.bool, device=device)
        positive[torch.arange(len(columns), device=device), columns] = True
        places = self._same_place(batch, ranks).to(device)
        ignored = (places.float() @ positive.float()) > 0
        return embeddings[torch.tensor(list(firsts.values()), dtype=torch.int64)], positive, ignored & ~positive

    def _same_place(self, batch: TrainingBatch, ranks: RankGroup) -> Tensor:
        """Return which regions of all ranks are of one image and overlap, bool (R, R)."""
        parts = []
        for rois in ranks.objects(batch.rois):
            overlap = torchvision.ops.box_iou(rois[:, 1:], rois[:, 1:]) >= self.config.same_place_iou
            parts.append(overlap & (rois[:, :1] == rois[:, 0]))
        together: Tensor = torch.block_diag(*parts)
        return together.bool()
