"""Data of the training on drawn scenes: batches, their tokens, and which phrases are true of which scene.

A truth table says which captions and phrases are true of which scenes. Its columns are the colour-kind pairs, the kinds
and the colours; the same again for "at least two of them"; then the number of things. A caption counts as true of a
scene if the scene has everything that the caption claims and nothing that it denies. Such a pair must not be trained
apart, even if the caption was written for another scene.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from open_clip.tokenizer import SimpleTokenizer, get_pairs
from torch import Tensor

from pipeline.scenes.captions import (
    COLOUR_NAMES,
    DETERMINERS,
    HELDOUT_PAIRS,
    KINDS,
    LARGE_WORDS,
    NUMBER_WORDS,
    PLURALS,
    SMALL_WORDS,
    Caption,
    all_templates,
)
from pipeline.scenes.scene import SceneObject, make_scene, resize_image
from pipeline.training.model import CONTEXT_LENGTH

if TYPE_CHECKING:
    from pipeline.training.drawn import Phase

VOCABULARY_FILE: Final = "bpe_vocab.txt.gz"

_CONCEPTS: Final[list[tuple[str | None, str | None]]] = [
    *product(KINDS, COLOUR_NAMES),
    *((kind, None) for kind in KINDS),
    *((None, colour) for colour in COLOUR_NAMES),
]
"""Kind and colour of each column of the first block."""

_COLUMN_OF: Final = {concept: column for column, concept in enumerate(_CONCEPTS)}

PAIRS: Final = len(KINDS) * len(COLOUR_NAMES)  # the first columns
CONCEPTS: Final = len(_CONCEPTS)  # columns of the first block; the second, "at least two", is as wide
COLUMNS: Final = 2 * CONCEPTS + 7  # the last seven are "exactly n things", n = 0-6

_NUMBER_VALUES: Final = {word: number for number, word in NUMBER_WORDS.items()}

_QUERY_WORDS: Final = "of one photograph drawing illustration scene it them this that all also close"
"""Words that scenes do not use but people put around a phrase. They are untrained, but stay whole."""


def concept_column(kind: str | None, colour: str | None) -> int:
    """Return the column of a kind and colour, of a kind (colour None) or of a colour (kind None)."""
    return _COLUMN_OF[kind, colour]


def present(objects: Sequence[SceneObject]) -> npt.NDArray[np.float32]:
    """Return the row of the truth table for a scene: float32 (COLUMNS,), 0 or 1."""
    counts = np.zeros(CONCEPTS, np.int64)
    for thing in objects:
        for kind, colour in ((thing.kind, thing.colour), (thing.kind, None), (None, thing.colour)):
            counts[concept_column(kind, colour)] += 1
    number = np.arange(COLUMNS - 2 * CONCEPTS) == min(len(objects), 6)
    return np.concatenate([counts > 0, counts > 1, number]).astype(np.float32)


def claims(caption: Caption) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return a caption's claims about what is there and what is not: two float32 (COLUMNS,), 0 or 1."""
    claimed, denied = np.zeros(COLUMNS, np.float32), np.zeros(COLUMNS, np.float32)
    for mention in caption.mentions:
        column = concept_column(mention.kind, mention.colour)
        if mention.absent:
            denied[column] = 1.0
            continue
        claimed[column] = 1.0
        if len(mention.objects) > 1:
            claimed[CONCEPTS + column] = 1.0
    if not caption.mentions:
        number = next(_NUMBER_VALUES[word] for word in caption.text.lower().split() if word in _NUMBER_VALUES)
        claimed[2 * CONCEPTS + number] = 1.0
    return claimed, denied


def known_true(claimed: Tensor, denied: Tensor, present: Tensor) -> Tensor:
    """Return which captions (C, columns) are true of which images (B, columns) by the truth table, bool (B, C)."""
    return (1.0 - present) @ claimed.T + present @ denied.T < 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """Data of one step."""

    images: Tensor  # uint8 (batch, 3, side, side), RGB
    tokens: Tensor  # int64 (batch, context), one caption an image
    present: Tensor  # float32 (batch, columns), rows of the truth table, as the next two
    claimed: Tensor
    denied: Tensor


class SceneBatches:
    """Batches of a phase by their numbers: b holds the scenes b * size to (b + 1) * size - 1 of a seed."""

    def __init__(self, tokenizer: SimpleTokenizer, phase: Phase, *, seed: int, size: int) -> None:
        self._tokenizer, self._phase, self._seed, self._size = tokenizer, phase, seed, size

    def __getitem__(self, number: int) -> Batch:
        cv2.setNumThreads(1)
        phase = self._phase
        images, texts, rows = [], [], []
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
            rows.append((present(scene.objects), *claims(caption)))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return Batch(
            pixels, self._tokenizer(texts), *(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        )


class PhraseBank:
    """Every concept that training shows, worded anew at each step."""

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        columns = bank_columns()
        self.columns = torch.tensor(columns)  # of the truth table, one for each phrase
        self._tokens = torch.stack([tokenizer(list(bank_wordings(column))) for column in columns])

    def tokens(self, generator: torch.Generator) -> Tensor:
        """Return one random wording of each phrase, int64 (phrases, context)."""
        phrases, wordings, _ = self._tokens.shape
        choice = torch.randint(wordings, (phrases,), generator=generator)
        return self._tokens[torch.arange(phrases), choice]


def bank_columns() -> list[int]:
    """Return the columns of the first block in the phrase bank: all except the pairs that training never shows."""
    hidden = {concept_column(kind, colour) for kind, colour in HELDOUT_PAIRS}
    return [column for column in range(CONCEPTS) if column not in hidden]


def bank_wordings(column: int) -> tuple[str, ...]:
    """Return six wordings of a column of the first block; the bare phrase comes first and most often."""
    kind, colour = _CONCEPTS[column]
    if kind is None:
        one, many = f"{colour} thing", f"{colour} things"
        return (one, f"something {colour}", str(colour), f"the {one}", many, f"two {many}")
    one, many = (kind, PLURALS[kind]) if colour is None else (f"{colour} {kind}", f"{colour} {PLURALS[kind]}")
    article = "an" if one[0] in "aeiou" else "a"
    return (one, one, f"{article} {one}", f"the {one}", many, f"two {many}")


def scene_words() -> list[str]:
    """Return every word that a caption or a wording can hold, lower case, sorted."""
    words = {*PLURALS, *PLURALS.values(), *COLOUR_NAMES, *NUMBER_WORDS.values(), *SMALL_WORDS, *LARGE_WORDS}
    words |= {*DETERMINERS, *_QUERY_WORDS.split(), "thing", "things", "object", "objects", "something"}
    for template in all_templates():
        words |= set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", template.lower())))
    return sorted(words)


def cut_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return CLIP's merges that are needed to write the given words, in CLIP's order.

    With only these merges a word among `words` becomes the same pieces as with all of CLIP's: at every step the
    best-ranked pair is one of them.
    """
    full = SimpleTokenizer()
    used: set[tuple[str, str]] = set()
    for word in words:
        pieces = (*word[:-1], word[-1] + "</w>")
        while len(pieces) > 1:
            best = min(get_pairs(pieces), key=lambda pair: full.bpe_ranks.get(pair, float("inf")))
            if best not in full.bpe_ranks:
                break
            used.add(best)
            merged = re.sub(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)", "".join(best), " ".join(pieces))
            pieces = tuple(merged.split(" "))
    return sorted(used, key=lambda pair: int(full.bpe_ranks[pair]))


def write_vocabulary(folder: Path, words: Iterable[str]) -> None:
    """Write the cut vocabulary in the form that `open_clip.tokenizer.SimpleTokenizer(bpe_path=...)` reads.

    The bytes are the same on every call. No line break ends the file, since the tokenizer would count it as a merge.
    """
    merges = (" ".join(merge) for merge in cut_merges(words))
    lines = "\n".join(["#version: 0.2, cut from CLIP's bpe_simple_vocab_16e6", *merges])
    (folder / VOCABULARY_FILE).write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))


def load_vocabulary(folder: Path) -> SimpleTokenizer:
    """Return the tokenizer of a training folder or of exported weights."""
    return SimpleTokenizer(bpe_path=str(folder / VOCABULARY_FILE), context_length=CONTEXT_LENGTH)
