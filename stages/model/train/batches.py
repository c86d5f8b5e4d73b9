"""Batches of freshly drawn scenes: every step sees scenes that no step saw before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stages.model.scenes.scene import make_scene, resize_image
from stages.model.train.concepts import bank_columns, bank_wordings, claims, present
from stages.model.train.config import PREPROCESS_CFG, Phase


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from.

    Attributes:
        images: uint8 (batch, 3, side, side), RGB.
        tokens: int64 (batch, context), one caption an image.
        present, claimed, denied: float32 (batch, columns), see `stages.model.train.concepts`.
    """

    images: Tensor
    tokens: Tensor
    present: Tensor
    claimed: Tensor
    denied: Tensor


class SceneBatches(IterableDataset[Batch]):
    """Batches number `first`, `first + 1`, ... of a phase.

    Args:
        tokenizer: turns captions into tokens.
        phase: image size, number and size of things.
        seed: seed of the scenes; batch b holds the scenes b * size to (b + 1) * size - 1 of the split
        "train". size: images per batch.
        first: number of the first batch, over all phases.
        count: how many batches.
    """

    def __init__(
        self, tokenizer: SimpleTokenizer, phase: Phase, *, seed: int, size: int, first: int, count: int
    ) -> None:
        super().__init__()
        self._tokenizer, self._phase = tokenizer, phase
        self._seed, self._size, self._first, self._count = seed, size, first, count

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        cv2.setNumThreads(1)
        for number in range(self._first + offset, self._first + self._count, stride):
            yield self._draw(number)

    def _draw(self, number: int) -> Batch:
        phase = self._phase
        images, texts, rows, claimed, denied = [], [], [], [], []
        for index in range(number * self._size, (number + 1) * self._size):
            large = index % 3 == 0 and phase.render_scale > 1.0
            scene = make_scene(
                self._seed,
                index,
                side_px=round(phase.side_px * phase.render_scale) if large else phase.side_px,
                split="train",
                max_objects=phase.max_objects,
                size_range_rel=(phase.min_size_rel, phase.max_size_rel),
            )
            images.append(resize_image(scene.image, phase.side_px) if large else scene.image)
            caption = scene.captions[0 if index % 5 < 2 else 1]
            texts.append(caption.text)
            rows.append(present(scene.objects))
            yes, no = claims(caption)
            claimed.append(yes)
            denied.append(no)
        return Batch(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            tokens=self._tokenizer(texts),
            present=torch.from_numpy(np.stack(rows)),
            claimed=torch.from_numpy(np.stack(claimed)),
            denied=torch.from_numpy(np.stack(denied)),
        )


def load_batches(batches: SceneBatches, *, workers: int) -> Iterator[Batch]:
    """The batches in order, drawn by `workers` processes ahead of time; 0 draws them in this process."""
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        # A forked worker would inherit locks that the threads of torch or OpenCV may hold, and hang.
        multiprocessing_context="spawn" if workers else None,
        in_order=True,
    )
    return iter(loader)


class PhraseBank:
    """Every concept that training shows, worded anew at each step.

    Attributes:
        columns: int64 (phrases,), the truth table's column of each phrase.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        columns = bank_columns()
        self.columns = torch.tensor(columns)
        self._tokens = torch.stack([tokenizer(list(bank_wordings(column))) for column in columns])

    def tokens(self, generator: torch.Generator) -> Tensor:
        """int64 (phrases, context): one random wording each."""
        phrases, wordings, _ = self._tokens.shape
        choice = torch.randint(wordings, (phrases,), generator=generator)
        return self._tokens[torch.arange(phrases), choice]


def normalise(images: Tensor) -> Tensor:
    """uint8 (batch, 3, H, W) -> float32, as `PREPROCESS_CFG` says."""
    mean = torch.tensor(PREPROCESS_CFG["mean"]).view(3, 1, 1)
    std = torch.tensor(PREPROCESS_CFG["std"]).view(3, 1, 1)
    return (images.float() / 255.0 - mean) / std
