"""A dataset as the batches of a training: seed and step alone determine the images of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from phrasebox.pipeline.load import Contents, RegionDataset, collate_regions
from phrasebox.pipeline.research.finetune.config import DataConfig
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.values import Integers, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """A rank's part of the images of a step: B images with R regions.

    Attributes:
        rgb: uint8 (B, side, side, 3).
        captions: A random caption of each image; each epoch draws again.
        rois: float (R, 5): image of the batch, x0, y0, x1, y1 in px of `rgb`, half open.
        phrases: U different phrases.
        phrase_indices: int64 (R,), into `phrases`.
        seeds: A number of each image for what a recipe draws itself; each epoch has others.
    """

    rgb: Tensor
    captions: list[str]
    rois: Tensor
    phrases: list[str]
    phrase_indices: Tensor
    seeds: Sequence[int] = ()


class TuningData:
    """The images and regions of a training. Images are stretched to squares of `side_px`.

    `seed` decides the order; a step takes `batch_size` images on all ranks together. Raise
    InputError if there is no dataset, or no image in it, and ConfigError if a condition is
    invalid, or a step needs more images than there are.
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
            raise ConfigError(
                f"a step takes {batch_size} images, and {config.path} has {self.images}", key="batch_size"
            )
        self.steps_per_epoch = self.images // batch_size  # each epoch leaves out other images

    @property
    def bad_images(self) -> int:
        """Number of images that could not be read so far; repeated ones count again."""
        return self._rows.bad_images.count

    def count_regions(self) -> int:
        """Return the number of chosen regions. Reads the dataset once, without images."""
        regions = self._rows.dataset.regions(
            self.config.where,
            ["phrase"],
            min_score=self.config.min_score,
        )
        count: int = regions.num_rows
        return count

    def batches(self, steps: Sequence[int], rank: int, ranks: int) -> Iterator[TrainingBatch]:
        """Yield this rank's part of each step.

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
            yield self._batch(batch, step)

    def _part(self, step: int, rank: int, ranks: int) -> list[int]:
        epoch, place = divmod(step, self.steps_per_epoch)
        images = _order(self.seed, epoch, self.images)[place * self.batch_size :][: self.batch_size]
        return [
            int(number)
            for number in images[len(images) * rank // ranks : len(images) * (rank + 1) // ranks]
        ]

    def _batch(self, batch: Json, step: int) -> TrainingBatch:
        generators = [
            np.random.default_rng([self.seed, step, image % 2**32]) for image in batch["ids"].tolist()
        ]
        captions = [
            texts[int(rng.integers(len(texts)))]
            for texts, rng in zip(batch["captions"], generators, strict=True)
        ]
        if self.config.boxes == "shuffled":
            batch["rois"] = shuffle_boxes(batch["rois"], generators)
        return TrainingBatch(
            rgb=batch["images"].permute(0, 2, 3, 1),
            captions=captions,
            rois=batch["rois"],
            phrases=batch["phrases"],
            phrase_indices=batch["phrase_indices"],
            seeds=[int(rng.integers(2**32)) for rng in generators],
        )


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, images: int) -> Integers:
    return np.random.default_rng([seed, epoch]).permutation(images)


def shuffle_boxes(rois: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """Exchange the different boxes of each image so that none stays: (R, 5).

    Each image has a random generator. Regions with equal boxes, which are of one object, get
    equal boxes. A single box becomes that of another image.
    """
    shuffled_rois = rois.clone()
    for image, rng in enumerate(generators):
        is_of_image = rois[:, 0] == image
        boxes, numbers = rois[is_of_image, 1:].unique(dim=0, return_inverse=True)
        other_boxes = rois[~is_of_image, 1:]
        if len(boxes) > 1:  # each box takes the next one of a random cycle
            order = torch.from_numpy(rng.permutation(len(boxes)))
            shuffled_rois[is_of_image, 1:] = boxes[order.roll(1)][order.argsort()[numbers]]
        elif len(boxes) and len(other_boxes):
            shuffled_rois[is_of_image, 1:] = other_boxes[int(rng.integers(len(other_boxes)))]
    return shuffled_rois
