"""Train the heads of a small CLIP on captioned photographs; no box, mask or point is seen.

Three contrastive losses: captions to images, phrases to images, and phrases to the best tokens of images, which asks
that some token of a photograph fits each of its phrases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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


def train_heads(
    trunk: FrozenTrunk,
    features: Any,
    photographs: CaptionedPhotographs,
    encode: SentenceEncoder,
    *,
    depth: int,
    steps: int,
    seed: int,
    keep: int,
) -> tuple[ImageHead, TextHead, float]:
    """Train both heads; also return the factor of the phrases' cosines.

    depth: Blocks of the image head. keep: Tokens of each photograph that a step sees.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    bank = sorted({phrase for phrases in photographs.phrases for phrase in phrases})
    numbers = {phrase: number for number, phrase in enumerate(bank)}
    owned = [np.array([numbers[phrase] for phrase in phrases], np.int64) for phrases in photographs.phrases]
    present = torch.full((len(owned), PHRASES), -1)
    for row, numbers_of_row in zip(present, owned, strict=True):
        row[: len(numbers_of_row[:PHRASES])] = torch.from_numpy(numbers_of_row[:PHRASES])
    phrase_vectors = encode(bank)
    caption_vectors = encode([text for captions in photographs.captions for text in captions])
    unit_phrases, unit_captions = (F.normalize(x, dim=-1) for x in (phrase_vectors, caption_vectors))
    image_head, text_head, scales = ImageHead(trunk, depth), TextHead(), Scales()
    parameters = [p for module in (image_head, text_head, scales) for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(owned)).tolist()
        batch, order = np.array(order[:BATCH]), order[BATCH:]
        places = np.stack([rng.permutation(GRID * GRID)[:keep] for _ in batch])
        tokens = torch.from_numpy(features[batch[:, None], places]).float()
        captions = torch.from_numpy(2 * batch + rng.integers(2, size=len(batch)))
        chosen = [rng.permutation(owned[number])[:3] for number in batch if len(owned[number])]
        phrases = torch.from_numpy(np.unique(np.concatenate(chosen)))
        of_images = present[batch]
        is_present = (of_images[None] == phrases[:, None, None]).any(dim=-1)
        cosines = (unit_phrases[phrases] @ unit_phrases[of_images.clamp(min=0).flatten()].T).unflatten(
            1, of_images.shape
        )
        nearest = cosines.masked_fill(of_images[None] < 0, -1.0).amax(dim=-1)
        is_unsure = (nearest > ALIKE_PHRASES) & ~is_present
        is_own = torch.eye(len(batch), dtype=torch.bool)
        is_alike = (unit_captions[captions] @ unit_captions[captions].T > ALIKE_CAPTIONS) & ~is_own
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings, paths = image_head(tokens, torch.from_numpy(places))
            texts = text_head(torch.cat([caption_vectors[captions], phrase_vectors[phrases]]))
            of_captions, of_phrases = texts[: len(batch)], texts[len(batch) :]
            on_tokens = torch.einsum("pe,bke->pbk", of_phrases, paths).float()
        by_captions = scales.captions.exp() * (of_captions.float() @ embeddings.float().T)
        by_phrases = scales.phrases.exp() * (of_phrases.float() @ embeddings.float().T)
        by_tokens = (scales.tokens.exp() * on_tokens).logsumexp(dim=-1) - math.log(keep)
        losses = (
            _contrast(by_captions, is_own, is_alike),
            _contrast(by_phrases, is_present, is_unsure),
            _contrast(by_tokens, is_present, is_unsure),
        )
        loss = torch.stack([weight * part for weight, part in zip(WEIGHTS, losses, strict=True)]).sum()
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


def _contrast(logits: Tensor, is_true: Tensor, is_unsure: Tensor) -> Tensor:
    """Return the loss of each true pair against the false ones of its row, and of its column."""

    def along(dim: int) -> Tensor:
        false = logits.masked_fill(is_true | is_unsure, -1e4).logsumexp(dim, keepdim=True)
        return F.softplus(false - logits)[is_true].mean()

    return (along(0) + along(1)) / 2
