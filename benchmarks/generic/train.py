"""Train the heads of a small CLIP on captioned photographs; no box, mask or point is seen.

Three contrastive losses: captions to images, phrases to images, and phrases to the best tokens of images, which asks
that some token of a photograph fits each of its phrases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.generic.heads import GRID, ImageHead, Scales, TextHead
from benchmarks.generic.texts import SentenceEncoder
from benchmarks.generic.trunks import FrozenTrunk
from phrasebox.stages.contract.records import Record
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.read import READERS, make_reader

PHOTOGRAPHS: Final = 2000
PHRASES: Final = 16  # of a photograph that count as present
BATCH: Final = 160
RATE: Final = 2e-3
WEIGHTS: Final = (0.3, 1.0, 2.0)  # of the losses: captions, phrases, tokens
ALIKE_PHRASES: Final = (
    0.6  # cosine from which another photograph's phrase may be true of this one, and is ignored
)
ALIKE_CAPTIONS: Final = 0.8
LARGEST_SCALE: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedPhotographs:
    """Photographs for training.

    Attributes:
        files: Their files.
        captions: Two captions of each.
        phrases: The different phrases of each.
    """

    files: Sequence[Path]
    captions: Sequence[Sequence[str]]
    phrases: Sequence[Sequence[str]]


def read_photographs(lines: Path, images: Path, most: int = PHOTOGRAPHS) -> CaptionedPhotographs:
    """Read the first photographs of a file of captions, and parse their phrases."""
    reader = make_reader(READERS.config({"kind": "jsonl", "path": str(lines), "image_root": str(images)}))
    records = [Record.start(sample) for sample in reader.samples(reader.pieces())][:most]
    stage = PhrasesStage(PhrasesConfig(), limits_later=True)
    stage.setup()
    parsed = stage.process(records)
    stage.teardown()
    return CaptionedPhotographs(
        files=[images / Path(record.sample.image.file_name or "").name for record in parsed],
        captions=[[text.lower().rstrip(" .") for text in record.sample.captions[:2]] for record in parsed],
        phrases=[sorted({phrase.text for phrase in record.phrases}) for record in parsed],
    )


def training_features(trunk: FrozenTrunk, files: Sequence[Path], cache: Path) -> Any:
    """Return the trunk's tokens (photographs, 196, C) of squashed photographs as float16, computed once."""
    if cache.is_file():
        return np.load(cache, mmap_mode="r")
    side = GRID * trunk.stride_px
    parts = []
    with torch.no_grad():
        for start in range(0, len(files), 8):
            pixels = [_squash(path, side) for path in files[start : start + 8]]
            parts.append(trunk.features(torch.from_numpy(np.stack(pixels))).half().numpy())
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, np.concatenate(parts))
    return np.load(cache, mmap_mode="r")


def _squash(path: Path, side: int) -> Any:
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How heads are trained.

    Attributes:
        depth: Blocks of the image head.
        steps: Steps of training.
        keep: Tokens of each photograph that a step sees.
        seed: Of all random numbers.
    """

    depth: int
    steps: int
    keep: int
    seed: int = 0


def train_heads(
    trunk: FrozenTrunk,
    features: Any,
    photographs: CaptionedPhotographs,
    encode: SentenceEncoder,
    plan: TrainingPlan,
) -> tuple[ImageHead, TextHead, float]:
    """Train both heads; also return the factor of the phrases' cosines.

    features: See `training_features`.
    """
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    texts = TrainingTexts(photographs, encode)
    image_head, text_head, scales = ImageHead(trunk, plan.depth), TextHead(), Scales()
    parameters = [p for module in (image_head, text_head, scales) for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=plan.steps, pct_start=0.1)
    order: list[int] = []
    for _ in range(plan.steps):
        if len(order) < BATCH:
            order = rng.permutation(len(photographs.files)).tolist()
        images, order = np.array(order[:BATCH]), order[BATCH:]
        places = np.stack([rng.permutation(GRID * GRID)[: plan.keep] for _ in images])
        tokens = torch.from_numpy(features[images[:, None], places]).float()
        batch = texts.draw(images, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings, paths = image_head(tokens, torch.from_numpy(places))
            of_texts = text_head(batch.vectors)
        loss = _loss(batch, scales, of_texts, embeddings, paths)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for scale in scales.parameters():
                scale.clamp_(max=math.log(LARGEST_SCALE))
    return (
        image_head.eval().requires_grad_(False),
        text_head.eval().requires_grad_(False),
        float(scales.phrases.detach().exp()),
    )


class TextBatch(NamedTuple):
    """The texts of a batch of b photographs: a caption of each, and p phrases of some.

    Attributes:
        vectors: Of the captions, and then of the phrases, (b + p, SENTENCE_WIDTH).
        is_own: Whether a caption is the photograph's, (b, b).
        is_alike: Whether it may be true of it all the same, (b, b).
        is_present: Whether a phrase is one of the photograph's, (p, b).
        is_unsure: Whether it may be true of it all the same, (p, b).
    """

    vectors: Tensor
    is_own: Tensor
    is_alike: Tensor
    is_present: Tensor
    is_unsure: Tensor


class TrainingTexts:
    """Captions and phrases of photographs, encoded once.

    Args:
        photographs: The photographs.
        encode: Encodes texts.
    """

    def __init__(self, photographs: CaptionedPhotographs, encode: SentenceEncoder) -> None:
        bank = sorted({phrase for phrases in photographs.phrases for phrase in phrases})
        numbers = {phrase: number for number, phrase in enumerate(bank)}
        self._owned = [
            np.array([numbers[phrase] for phrase in phrases], np.int64) for phrases in photographs.phrases
        ]
        self._present = torch.full((len(self._owned), PHRASES), -1)
        for row, numbers_of_row in zip(self._present, self._owned, strict=True):
            row[: len(numbers_of_row[:PHRASES])] = torch.from_numpy(numbers_of_row[:PHRASES])
        self._phrases = encode(bank)
        self._captions = encode([text for captions in photographs.captions for text in captions])
        self._unit_phrases = F.normalize(self._phrases, dim=-1)
        self._unit_captions = F.normalize(self._captions, dim=-1)

    def draw(self, images: Any, rng: np.random.Generator) -> TextBatch:
        """Draw texts of photographs, which are given by their numbers (b,)."""
        captions = torch.from_numpy(2 * images + rng.integers(2, size=len(images)))
        chosen = [rng.permutation(self._owned[number])[:3] for number in images if len(self._owned[number])]
        phrases = torch.from_numpy(np.unique(np.concatenate(chosen)))
        of_images = self._present[images]
        is_present = (of_images[None] == phrases[:, None, None]).any(dim=-1)
        image_phrases = self._unit_phrases[of_images.clamp(min=0).flatten()]
        cosines = (self._unit_phrases[phrases] @ image_phrases.T).unflatten(1, of_images.shape)
        nearest = cosines.masked_fill(of_images[None] < 0, -1.0).amax(dim=-1)
        is_own = torch.eye(len(images), dtype=torch.bool)
        unit = self._unit_captions[captions]
        return TextBatch(
            vectors=torch.cat([self._captions[captions], self._phrases[phrases]]),
            is_own=is_own,
            is_alike=(unit @ unit.T > ALIKE_CAPTIONS) & ~is_own,
            is_present=is_present,
            is_unsure=(nearest > ALIKE_PHRASES) & ~is_present,
        )


def _loss(batch: TextBatch, scales: Scales, texts: Tensor, embeddings: Tensor, paths: Tensor) -> Tensor:
    """Return the weighted sum of the three losses.

    Args:
        batch: What is true of the photographs.
        scales: Factors of the cosines.
        texts: Embeddings of its texts, (b + p, WIDTH).
        embeddings: Those of the photographs, (b, WIDTH).
        paths: Those of their tokens, (b, keep, WIDTH).
    """
    of_captions, of_phrases = texts[: len(embeddings)], texts[len(embeddings) :]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        on_tokens = torch.einsum("pe,bke->pbk", of_phrases, paths).float()
    by_captions = scales.captions.exp() * (of_captions.float() @ embeddings.float().T)
    by_phrases = scales.phrases.exp() * (of_phrases.float() @ embeddings.float().T)
    by_tokens = (scales.tokens.exp() * on_tokens).logsumexp(dim=-1) - math.log(paths.shape[1])
    losses = (
        _contrast(by_captions, batch.is_own, batch.is_alike),
        _contrast(by_phrases, batch.is_present, batch.is_unsure),
        _contrast(by_tokens, batch.is_present, batch.is_unsure),
    )
    return torch.stack([weight * part for weight, part in zip(WEIGHTS, losses, strict=True)]).sum()


def _contrast(logits: Tensor, is_true: Tensor, is_unsure: Tensor) -> Tensor:
    """Return the loss of each true pair against the false ones of its row, and of its column."""

    def along(dim: int) -> Tensor:
        false = logits.masked_fill(is_true | is_unsure, -1e4).logsumexp(dim, keepdim=True)
        return F.softplus(false - logits)[is_true].mean()

    return (along(0) + along(1)) / 2
