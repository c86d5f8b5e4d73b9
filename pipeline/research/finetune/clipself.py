"""Self-distillation: the dense features of a place learn the model's own embedding of the crop. No text is needed.

CLIPSelf (Wu and others, ICLR 2024, arXiv 2310.01403):

    loss = 1 - mean over the boxes of cos(student's features in the box, teacher's embedding of the crop)

The teacher is the image tower as it was before the training, and does not learn. The student's
features are `pool_boxes` of its dense features, the mean direction of the patches in the box. The
boxes are the parts of a random grid, or the regions of the dataset (`places: regions`), as the
paper takes those of a region proposal network.

Deviation: crops are cut from the image at the model's input size. The paper's student sees images
of 1024 pixels, and its crops are cut from these.

Shapes: B images, R boxes, E embedding.
"""

from __future__ import annotations

import copy
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from phrasebox.pipeline.research.finetune.config import RecipeConfig
from phrasebox.pipeline.research.finetune.material import TrainingBatch
from phrasebox.pipeline.research.finetune.ranks import RankGroup
from phrasebox.pipeline.research.finetune.recipe import Recipe, Student, Terms, caption_loss
from phrasebox.stages.images.crops import crop_regions
from phrasebox.stages.model.towers.dense import dense
from phrasebox.stages.model.towers.from_open_clip import build_image_tower
from phrasebox.stages.sources.grid import draw_crops

CROPS_PER_PASS: Final = 64  # of the teacher, which bounds its memory


class ClipSelfConfig(RecipeConfig):
    """Dense features against the embeddings of crops."""

    kind: Literal["clipself"] = "clipself"
    caption_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the loss between images and captions. With 0 no text is read, and the image "
        "tower alone learns.",
    )
    places: Literal["grid", "regions"] = Field(
        "grid",
        description="grid: the parts of a random grid, drawn anew in each epoch. regions: the dataset's.",
    )
    max_split: int = Field(
        6, ge=1, le=32, description="Most parts of the grid along a side. CLIPSelf's is 6."
    )

    @property
    def needs_regions(self) -> bool:
        """See `RecipeConfig.needs_regions`."""
        return self.places == "regions"


class ClipSelf(Recipe[ClipSelfConfig]):
    """The loss between dense features and crops."""

    config_type = ClipSelfConfig

    def __init__(self, config: ClipSelfConfig, student: Student) -> None:
        super().__init__(config, student)
        mean, std = (tuple(values.tolist()) for values in (student.tower.mean, student.tower.std))
        with torch.no_grad():
            self._teacher = build_image_tower(copy.deepcopy(student.module.visual), mean, std)
        if not config.caption_weight:
            for name, parameter in student.module.named_parameters():
                if not name.startswith("visual."):
                    parameter.requires_grad_(False)

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        student = self.student
        rgb = batch.rgb.to(student.device)
        rois = self._rois(batch)
        features = dense(student.tower, rgb)
        rank_places = student.regions(features, rgb, rois)
        # No tower takes a batch of no crops.
        rank_crops = self._embed_crops(batch.rgb, rois) if len(rois) else rank_places.detach()
        places = ranks.gather_rows(rank_places)
        crops = ranks.gather_rows(rank_crops)
        cosines = (places.float() * crops).sum(dim=1)
        terms: Terms = {"crops": (1.0, (1 - cosines).sum() / max(1, len(cosines)))}
        if self.config.caption_weight:
            loss = caption_loss(student, features.embedding, batch.captions, ranks)
            terms["captions"] = (self.config.caption_weight, loss)
        return terms

    def _rois(self, batch: TrainingBatch) -> Tensor:
        """Return the boxes (R, 5) of a batch, as `TrainingBatch.rois`."""
        if self.config.places == "regions":
            return batch.rois
        height, width = batch.rgb.shape[1:3]
        boxes = [
            (image, *box)
            for image, seed in enumerate(batch.seeds)
            for box in draw_crops((height, width), self.config.max_split, np.random.default_rng(seed))
        ]
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)

    @torch.no_grad()
    def _embed_crops(self, rgb: Tensor, rois: Tensor) -> Tensor:
        """Return the teacher's embeddings of length 1 of the parts of images in boxes (R, 5): (R, E)."""
        height, width = rgb.shape[1:3]
        sides = torch.tensor([width, height, width, height])
        parts = []
        for image, pixels in enumerate(rgb.numpy()):
            # In 64 bits, so that whole pixels stay whole.
            shares = (rois[rois[:, 0] == image, 1:].double() / sides).clamp(0, 1).tolist()
            parts.append(crop_regions(pixels, shares, height))
        crops = torch.from_numpy(np.concatenate(parts))
        passes = [
            self._teacher.encode(part.to(self.student.device)) for part in crops.split(CROPS_PER_PASS)
        ]
        return F.normalize(torch.cat(passes).float(), dim=-1)
