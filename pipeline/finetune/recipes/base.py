"""What a recipe is: the losses of a batch.

Shapes: B images of a rank, R regions, U phrases, E embedding. Losses are those of the batches of all ranks together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.finetune.config import RecipeConfig
from pipeline.finetune.losses import contrastive, logits_of, same
from pipeline.finetune.material import TrainingBatch
from pipeline.finetune.ranks import RankGroup
from pipeline.finetune.student import Student
from stages.shared.model.clip import ClipModel

ConfigT = TypeVar("ConfigT", bound=RecipeConfig)

Terms = dict[str, tuple[float, Tensor]]
"""Name of a loss -> its weight and the loss, a scalar."""


class Recipe(ABC, Generic[ConfigT]):
    """A way to teach a model.

    Args:
        config: the settings.
        student: the model that learns.
        start: the model that it began with, whose weights stay; only where `needs_start`.
    """

    config_type: ClassVar[type[RecipeConfig]]

    needs_regions: ClassVar[bool] = False
    """Whether a dataset without regions is refused."""

    needs_start: ClassVar[bool] = False
    """Whether the weights that the model began with are needed beside those that learn."""

    enlarged: ClassVar[int] = 1
    """How many times the model's side the images of a batch have."""

    def __init__(self, config: ConfigT, student: Student, start: ClipModel | None) -> None:
        self.config, self.student, self.start = config, student, start

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the recipe learns beside the model's; they are not part of the tuned model."""
        return []

    @abstractmethod
    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """The losses of a batch."""


def caption_loss(student: Student, embedding: Tensor, captions: list[str], ranks: RankGroup) -> Tensor:
    """CLIP's loss between the images of all ranks and their captions; equal captions are no negatives.

    A model that was trained with a sigmoid loss (SigLIP) is fine-tuned with this one, too.

    Args:
        student: the model.
        embedding: (B, E), of the images, in any scale.
        captions: B texts.
        ranks: the processes.
    """
    images = ranks.everyone(F.normalize(embedding.float(), dim=-1))
    texts = ranks.everyone(student.texts(captions))
    all_captions = [caption for own in ranks.objects(captions) for caption in own]
    logits = logits_of(ranks.once(student.scale), images, texts)
    return contrastive(logits, same(all_captions).to(logits.device))
