"""The parts that recipes share: the model that learns, contrastive losses, the base class; and the baseline.

Shapes: B images of a rank, R regions, U phrases, T texts, E embedding. Losses are those of the
batches of all ranks together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrasebox.pipeline.research.finetune.config import CaptionsConfig, RecipeConfig
from phrasebox.pipeline.research.finetune.material import TrainingBatch
from phrasebox.pipeline.research.finetune.ranks import RankGroup
from phrasebox.stages.model.config import InputSpec
from phrasebox.stages.model.text_encoder import TextTower, text_tower_of
from phrasebox.stages.model.towers.dense import DenseFeatures, pool_boxes
from phrasebox.stages.model.towers.from_open_clip import build_image_tower
from phrasebox.stages.model.towers.tower import Tower

ConfigT = TypeVar("ConfigT", bound=RecipeConfig)

Terms = dict[str, tuple[float, Tensor]]
"""Name of a loss -> its weight and the loss, a scalar."""

_EXCLUDED_LOGIT: Final = -1e9
"""The logit of a pair that is no negative.

With minus infinity, a row without negatives has a gradient of NaN.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A CLIP model in training.

    Batch normalisation keeps its statistics and dropout does nothing, as is usual in
    fine-tuning.

    Attributes:
        module: open_clip's model, float32.
        tower: Its image tower, taken apart for dense features.
        text_tower: Its text tower; None if it embeds the whole context.
        tokenizer: Texts -> int64 (T, context).
        full_texts: The texts so far that fill the context; what is behind it is cut.
    """

    module: Any
    tower: Tower
    text_tower: TextTower | None
    tokenizer: Any
    full_texts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, module: Any, tokenizer: Any, spec: InputSpec) -> Student:
        """Take a module apart. Raise ConfigError if its image tower has no dense features."""
        tower = build_image_tower(module.visual, spec.mean, spec.std)
        return cls(module=module, tower=tower, text_tower=text_tower_of(module), tokenizer=tokenizer)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tower.device

    def regions(self, features: DenseFeatures, rgb: Tensor, rois: Tensor) -> Tensor:
        """Return features of length 1 of boxes (R, 5), see `pool_boxes`: (R, E)."""
        grid_hw = self.tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
        return pool_boxes(features.patches, grid_hw, self.tower.placement, rois.to(self.device))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of length 1, (T, E).

        Texts are cut at the model's context, as in CLIP's training; `full_texts` has those that
        fill it.
        """
        tokens: Tensor = self.tokenizer(list(texts))
        is_full = tokens[:, -1] != self.tokenizer([""])[0, -1]
        self.full_texts.update(texts[row] for row in is_full.nonzero().flatten().tolist())
        if self.text_tower is None:
            embeddings = self.module.encode_text(tokens.to(self.device))
        else:
            longest = int(self.text_tower.ends_of(tokens).max()) + 1
            embeddings = self.text_tower.encode(tokens[:, :longest].to(self.device))
        return F.normalize(embeddings.float(), dim=-1)


class Recipe(ABC, Generic[ConfigT]):
    """The losses of a fine-tuning. A recipe may freeze parameters of the student that it does not teach.

    Attributes:
        config_type: The settings of the recipe.
    """

    config_type: ClassVar[type[RecipeConfig]]

    def __init__(self, config: ConfigT, student: Student) -> None:
        self.config = config
        self.student = student

    def extra_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) that the recipe learns beside the model's parameters; they are not exported."""
        return []

    @abstractmethod
    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """Return the losses of a batch."""


class Captions(Recipe[CaptionsConfig]):
    """The loss between images and captions alone: CLIP's own training, which is the baseline for regions."""

    config_type = CaptionsConfig

    def terms(self, batch: TrainingBatch, ranks: RankGroup) -> Terms:
        """See `Recipe.terms`."""
        embedding = self.student.tower.encode(batch.rgb.to(self.student.device))
        loss = caption_loss(self.student, embedding, batch.captions, ranks)
        return {"captions": (self.config.caption_weight, loss)}


def caption_loss(
    student: Student,
    embedding: Tensor,
    captions: list[str],
    ranks: RankGroup,
) -> Tensor:
    """Return CLIP's loss between the images (B, E) of all ranks, in any scale, and their B captions.

    Equal captions are no negatives of each other. Models that were trained with a sigmoid loss
    (SigLIP) are fine-tuned with this one, too.
    """
    images = ranks.gather_rows(F.normalize(embedding.float(), dim=-1))
    texts = ranks.gather_rows(student.texts(captions))
    logits = logits_of(ranks.with_one_gradient(student.module.logit_scale.exp()), images, texts)
    return contrastive_loss(logits, equal_texts(ranks.gather_items(captions)).to(logits.device))


def logits_of(scale: Tensor, features: Tensor, texts: Tensor) -> Tensor:
    """Return scaled cosines (R, T) of features (R, E) and texts (T, E) of length 1, in float32 despite autocast.

    16 bits are too few for a difference of two cosines that is multiplied by 100.
    """
    with torch.autocast(features.device.type, enabled=False):
        return scale.float() * (features.float() @ texts.float().T)


def contrastive_loss(logits: Tensor, positive: Tensor, ambiguous: Tensor | None = None) -> Tensor:
    """Return InfoNCE in both directions: each positive against all negatives of its row, and of its column.

    The denominator leaves out the other positives of the row, as in supervised contrastive
    learning (Khosla and others, NeurIPS 2020, arXiv 2004.11362, L_out without them), and
    ambiguous pairs.

    Args:
        logits: float (R, T), scaled similarities.
        positive: bool (R, T), the matching pairs. Without any the loss, in nats, is 0.
        ambiguous: bool (R, T), pairs that may match: never negatives.
    """
    is_excluded = positive if ambiguous is None else positive | ambiguous
    return (one_way(logits, positive, is_excluded) + one_way(logits.T, positive.T, is_excluded.T)) / 2


def one_way(logits: Tensor, positive: Tensor, is_excluded: Tensor) -> Tensor:
    """Return the mean InfoNCE of the rows with positives, each the mean over these; see `contrastive_loss`."""
    counts = positive.sum(dim=1)
    negatives = logits.masked_fill(is_excluded, _EXCLUDED_LOGIT).logsumexp(dim=1, keepdim=True)
    losses = F.softplus(negatives - logits).masked_fill(~positive, 0.0).sum(dim=1) / counts.clamp(min=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)


def equal_texts(texts: list[str]) -> Tensor:
    """Return which of T texts are equal, bool (T, T).

    >>> equal_texts(["a", "b", "a"]).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    codes = torch.tensor([numbers[text] for text in texts])
    return codes[:, None] == codes[None, :]
