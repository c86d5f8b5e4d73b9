"""A dataset as the batches of a training: the images of a step follow from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.finetune.config import DataConfig
from pipeline.load import Contents, RegionDataset, collate_regions
from stages.contract.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """A rank's part of a step's images, B of them with R regions."""

    rgb: Tensor  # uint8 (B, side, side, 3)
    captions: list[str]  # one of each image's, drawn anew in each epoch
    rois: Tensor  # float (R, 5): image of the batch, x0, y0, x1, y1 in px of `rgb`, half open
    phrases: list[str]  # U different ones
    phrase_indices: Tensor  # int64 (R,), into `phrases`
    scores: Tensor  # float (R,), 0 .. 1
    seeds: tuple[int, ...]  # of the training, the step and the rank, for a recipe's draws


class TuningData:
    """The images, stretched to squares of `side_px`, and regions that a model learns from.

    `seed` decides the order, and `batch_size` images are those of a step of all ranks. Raises InputError if there is no
    dataset, or no image in it, and ConfigError if a condition is invalid, or fewer images are there than a step has.
    """

    def __init__(self, config: DataConfig, *, side_px: int, seed: int, batch_size: int) -> None:
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self._rows = RegionDataset(
            config.path,
            Contents(square_px=side_px, image_root=config.image_root),
            min_score=config.min_score,
            where=config.where,
            keep_empty=True,
            on_bad_image="skip",
        )
        self.images = len(self._rows)
        if not self.images:
            raise InputError(f"{config.path} holds no image that could be read")
        if self.images < batch_size:
            raise ConfigError(f"batch_size: a step takes {batch_size} images, and {config.path} has {self.images}")
        self.steps_per_epoch = self.images // batch_size  # images that are left over are in another pass

    @property
    def bad_images(self) -> int:
        """Images left out so far because they could not be read, counted each time."""
        return self._rows.bad_images.count

    def phrases(self) -> list[str]:
        """Return the different phrases of the chosen regions, sorted. Reads the dataset once, without images."""
        regions = self._rows.dataset.regions(self.config.where, ["phrase"], min_score=self.config.min_score)
        return sorted(set(regions["phrase"].to_pylist()))

    def batches(self, steps: Sequence[int], rank: int, ranks: int) -> Iterator[TrainingBatch]:
        """Yield this rank's parts of some steps, in order; the parts of a step follow each other in it.

        Raise InputError if no image of a part can be read.
        """
        parts = [self._part(step, rank, ranks) for step in steps]
        loader = DataLoader(
            self._rows, batch_sampler=parts, collate_fn=collate_regions, num_workers=self.config.loaders
        )
        for step, part, batch in zip(steps, parts, loader, strict=True):
            if not len(batch["ids"]):
                of_rank = f" on rank {rank}" if ranks > 1 else ""
                raise InputError(
                    f"{self.config.path}: none of the {len(part)} images of step {step}{of_rank} can be read; where "
                    "they have moved, set data.image_root"
                )
            yield self._batch(batch, step, rank)

    def _part(self, step: int, rank: int, ranks: int) -> list[int]:
        epoch, place = divmod(step, self.steps_per_epoch)
        own = _order(self.seed, epoch, self.images)[place * self.batch_size :][: self.batch_size]
        return [int(number) for number in own[len(own) * rank // ranks : len(own) * (rank + 1) // ranks]]

    def _batch(self, batch: dict[str, Any], step: int, rank: int) -> TrainingBatch:
        chance = [np.random.default_rng([self.seed, step, image % 2**32]) for image in batch["ids"].tolist()]
        drawn = [own[int(rng.integers(len(own)))] for own, rng in zip(batch["captions"], chance, strict=True)]
        if self.config.boxes == "shuffled":
            batch["rois"] = shuffled_boxes(batch["rois"], chance)
        return TrainingBatch(
            rgb=batch["images"].permute(0, 2, 3, 1),
            captions=drawn,
            **{name: batch[name] for name in ("rois", "phrases", "phrase_indices", "scores")},
            seeds=(self.seed, step, rank),
        )


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(images)


def shuffled_boxes(rois: Tensor, chance: Sequence[np.random.Generator]) -> Tensor:
    """Exchange the different boxes of each image, drawn by its own of `chance`, so that none stays: (R, 5).

    Regions with the same box, which name one thing, get the same one. An only box becomes one of another image.
    """
    moved = rois.clone()
    for image, rng in enumerate(chance):
        own = rois[:, 0] == image
        boxes, which = rois[own, 1:].unique(dim=0, return_inverse=True)
        others = rois[~own, 1:]
        if len(boxes) > 1:  # one round through all of them, in random order
            order = torch.from_numpy(rng.permutation(len(boxes)))
            moved[own, 1:] = boxes[order.roll(1)][order.argsort()[which]]
        elif len(boxes) and len(others):
            moved[own, 1:] = others[int(rng.integers(len(others)))]
    return moved


def reject_long_phrases(phrases: Sequence[str], tokenizer: Any) -> None:
    """Raise ConfigError for a phrase of which the tokenizer would cut words: it would teach something else.

    Tokenizers that are not CLIP's own are not checked: their cuts are not known.
    """
    if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        return
    room = tokenizer.context_length - 2  # for the marks in front and behind
    for phrase in phrases:
        count = len(tokenizer.encode(tokenizer.clean_fn(phrase))) if len(phrase) > room else 0
        if count > room:
            shown = phrase if len(phrase) <= 60 else f"{phrase[:60]}..."
            raise ConfigError(
                f"the phrase {shown!r} has {count} tokens, and the model takes {room}: leave out phrases of its length "
                f'with --where "length(phrase) < {len(phrase)}"'
            )
