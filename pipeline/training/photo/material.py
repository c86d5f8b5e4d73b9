"""What training learns from, prepared once in the run's folder: features, texts, teacher vectors, and the batches.

Every random choice of a step is drawn from the seed, the phase and the step alone, so a run that goes on from a
checkpoint sees the batches that it would have seen.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from pipeline.training.photo.config import CONTEXT_LENGTH, Matching, PhotoConfig
from pipeline.training.photo.imagenet import cache_front
from pipeline.training.photo.photographs import read_lists
from pipeline.training.photo.teacher import Teacher
from pipeline.training.photo.variants import variants
from pipeline.training.photo.words import Texts, collect, vocabulary_words, write_vocabulary
from stages.shared.model.towers.photo_trunk import GRID

VOCABULARY_FILE: Final = "bpe_vocab.txt.gz"
_VECTORS_FILE: Final = "teacher.pt"
_NONE: Final = -1
"""Fills the rows of `Material.phrase_table`."""


@dataclass(frozen=True, slots=True)
class PhotoBatch:
    """What one step of matching learns from.

    Attributes:
        front: Channels of the network's fixed part in the window, float16 (B, g, g, channels).
        corner: Row and column of each window's first token, int64 (B, 2).
        keep: Places in the window of the tokens to look at, int64 (B, N).
        captions: Places of one caption an image among the texts, int64 (B,).
        phrases: Places of the bank's phrases among the texts, int64 (P,).
        same_caption: bool (B, B), captions too near to be trained apart, by caption and image; not on the diagonal.
        belongs: bool (P, B), which phrases the images' captions hold.
        near: bool (P, B), phrases too near to one of the image's to be trained away from it.
    """

    front: Tensor
    corner: Tensor
    keep: Tensor
    captions: Tensor
    phrases: Tensor
    same_caption: Tensor
    belongs: Tensor
    near: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything that stays the same over a run.

    Attributes:
        config: The run's settings.
        fronts: Features of the photographs' variants, float16 (photographs, `GRID`, `GRID`, channels) each.
        texts: Captions and phrases.
        vectors: The teacher's vectors of the texts, float32 (T, 384).
        tokens: The texts in the vocabulary, int64 (T, context).
        phrase_table: Places of each photograph's phrases among the texts, int64 (photographs, most), filled with -1.
        tokenizer: The vocabulary.
    """

    config: PhotoConfig
    fronts: tuple[npt.NDArray[np.float16], ...]
    texts: Texts
    vectors: Tensor
    tokens: Tensor
    phrase_table: Tensor
    tokenizer: SimpleTokenizer

    @property
    def photographs(self) -> int:
        """How many photographs there are."""
        return len(self.texts.captions_of)

    def batch(self, phase: Matching, number: int, step: int) -> PhotoBatch:
        """The batch of a step of the phase with that number; each epoch shows every photograph once."""
        size = min(phase.batch, self.photographs)
        per_epoch = self.photographs // size
        order = np.random.default_rng([self.config.seed, number, step // per_epoch]).permutation(self.photographs)
        chosen = order[(step % per_epoch) * size :][:size]
        rng = np.random.default_rng([self.config.seed, number, step, 1])
        captions = torch.tensor([int(rng.choice(self.texts.captions_of[place])) for place in chosen])
        drawn = [rng.permutation(self.texts.phrases_of[place])[: self.config.phrases_per_photo] for place in chosen]
        phrases = torch.from_numpy(np.unique(np.concatenate(drawn)).astype(np.int64))
        corner = rng.integers(0, GRID - phase.window + 1, (size, 2))
        keep = np.sort(rng.random((size, phase.window**2)).argsort(axis=1)[:, : phase.keep], axis=1)
        belongs, near = self._phrases_of(chosen, phrases)
        return PhotoBatch(
            front=self._windows(chosen, rng.integers(0, len(self.fronts), size), corner, phase.window),
            corner=torch.from_numpy(corner),
            keep=torch.from_numpy(keep),
            captions=captions,
            phrases=phrases,
            same_caption=self._alike(captions, captions, self.config.similar_captions).fill_diagonal_(False),
            belongs=belongs,
            near=near,
        )

    def _windows(
        self, chosen: npt.NDArray[Any], variant: npt.NDArray[Any], corner: npt.NDArray[Any], window: int
    ) -> Tensor:
        out = np.empty((len(chosen), window, window, self.fronts[0].shape[-1]), np.float16)
        for row, (place, which, (top, left)) in enumerate(zip(chosen, variant, corner, strict=True)):
            out[row] = self.fronts[which][place, top : top + window, left : left + window]
        return torch.from_numpy(out)

    def _phrases_of(self, chosen: npt.NDArray[Any], phrases: Tensor) -> tuple[Tensor, Tensor]:
        table = self.phrase_table[torch.from_numpy(chosen)]
        belongs = (table[None] == phrases[:, None, None]).any(dim=-1)
        near = self._alike(phrases, table.clamp(min=0).flatten(), self.config.similar_phrases)
        near = (near.view(len(phrases), *table.shape) & (table != _NONE)).any(dim=-1)
        return belongs, near & ~belongs

    def similarity(self, places: Tensor) -> Tensor:
        """Cosines of the teacher's vectors of texts with each other, (T, T)."""
        unit = F.normalize(self.vectors[places], dim=-1)
        return unit @ unit.T

    def _alike(self, first: Tensor, second: Tensor, least: float) -> Tensor:
        unit = (F.normalize(self.vectors[places], dim=-1) for places in (first, second))
        a, b = unit
        return (a @ b.T) > least


def prepare(config: PhotoConfig, root: Path, out: Path, features: nn.Module) -> Material:
    """Read the photographs' lists, and compute what the run's folder does not hold yet.

    Args:
        config: The run's settings.
        root: Folder of the photographs, see `photographs.SETS`.
        out: The run's folder.
        features: The ImageNet network, in evaluation mode.

    Raises:
        InputError: Photographs are missing or damaged.
        ConfigError: A package that brings the teacher or the parser is not installed.
    """
    photographs = read_lists(root, held_out=config.held_out)
    texts = collect(photographs)
    captions = (caption for photograph in photographs for caption in photograph.captions)
    write_vocabulary(out / VOCABULARY_FILE, vocabulary_words(captions))
    tokenizer = load_vocabulary(out)
    return Material(
        config=config,
        fronts=tuple(
            cache_front(features, photographs, out / f"front-{number}.npy", variant=variant, seed=config.seed + number)
            for number, variant in enumerate(variants(config.variants))
        ),
        texts=texts,
        vectors=_teacher_vectors(texts, out / _VECTORS_FILE),
        tokens=torch.cat([tokenizer(list(texts.texts[at : at + 4096])) for at in range(0, len(texts.texts), 4096)]),
        phrase_table=_table(texts),
        tokenizer=tokenizer,
    )


def load_vocabulary(folder: Path) -> SimpleTokenizer:
    """The tokenizer of a run's folder, or of exported weights."""
    return SimpleTokenizer(bpe_path=str(folder / VOCABULARY_FILE), context_length=CONTEXT_LENGTH)


def _teacher_vectors(texts: Texts, path: Path) -> Tensor:
    """float32 (T, 384); a file of the same texts is used as it is."""
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        if kept["texts"] == list(texts.texts):
            known: Tensor = kept["vectors"]
            return known.float()
    vectors = Teacher()(texts.texts)
    temporary = path.with_suffix(".tmp")
    torch.save({"texts": list(texts.texts), "vectors": vectors}, temporary)
    os.replace(temporary, path)
    return vectors.float()


def _table(texts: Texts) -> Tensor:
    most = max((len(phrases) for phrases in texts.phrases_of), default=0)
    rows = [[*phrases, *[_NONE] * (most - len(phrases))] for phrases in texts.phrases_of]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), most)
