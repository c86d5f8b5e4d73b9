"""How important each word of a caption is for the caption's fit to its image: Grad-ECLIP on the text side.

Source: Zhao et al., "Gradient-based Visual Explanation for Transformer-based CLIP", ICML 2024, and its journal version
arXiv 2502.18816; the formula below is what their notebook on texts evaluates.

For one explained block of the text transformer, e the row of the token that ends the text (EOS), a the attention
weights of that row, v the values and o = sum_j a_j v_j:

    c   = cos(image embedding, text embedding)
    w   = dc / do                                  at row e, one weight per channel
    I_j = s_j * sum_d w_d v_j,d                    signed

summed over the blocks, with a ReLU. The tokens of the caption alone are kept, and divided by their sum: each token has
a share of the caption's positive importance. A word has the sum of its tokens, a phrase that of the tokens in its span.

The gradient is exact: the embedding is made of row e alone, and under the causal mask no other token of the caption
sees row e, so that holding the keys and values of the other tokens loses nothing of w.

Deviations, and the setting that restores the paper:
- the network's own heads instead of one head over the full width (`importance_heads: single`), whose cosine is not the
  model's;
- no weight s_j, which is a min-max of cosines over all 77 tokens of the context (`importance_weight: all`);
- the ReLU on each block, and not on their sum (`importance_rectify: sum`);
- all blocks; theirs are the last 8 of 12 (`importance_depth: 0.67`);
- where no token has a positive importance, all shares are 0 instead of 0 / 0.

Shapes: B pairs of caption and image, T tokens, H heads, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.records import Phrase, Record
from stages.explain.class_path import Step, attention_gradients, class_forward
from stages.explain.config import ExplainerConfig
from stages.explain.maps import cosine_gradients, stretched
from stages.shared.model.clip import ClipModel
from stages.shared.model.device import OnTheWay, to_device
from stages.shared.model.texts import by_length
from stages.shared.model.token_spans import Piece, pieces_of
from stages.shared.model.towers.text import attend_back


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption as the model's tokenizer cuts it: characters [start, end).

    `importance` is its share of the caption's positive importance, 0 .. 1.
    """

    start: int
    end: int
    importance: float


@dataclass(frozen=True, slots=True)
class CaptionImportance:
    """The importance of the tokens of one caption for one image.

    Attributes:
        pieces: The tokens of the caption that the model sees.
        shares: Float32, of each of them; they are >= 0, and their sum is 1, or 0 where none is positive.
        cosine: Of image and caption; with a single head not the model's own.
    """

    pieces: tuple[Piece, ...]
    shares: NDArray[np.float32]
    cosine: float

    def share_of(self, start: int, end: int) -> float | None:
        """Return the share of the characters [start, end); None where the model sees none of them."""
        inside = [place for place, piece in enumerate(self.pieces) if piece.start < end and start < piece.end]
        return min(1.0, float(self.shares[inside].sum(dtype=np.float64))) if inside else None

    def words(self) -> list[Word]:
        """Return the words of the caption that the model sees, in order."""
        members: dict[int, list[int]] = {}
        for place, piece in enumerate(self.pieces):
            members.setdefault(piece.word, []).append(place)
        return [
            Word(
                start=min(self.pieces[place].start for place in places),
                end=max(self.pieces[place].end for place in places),
                importance=float(self.shares[places].sum(dtype=np.float64)),
            )
            for places in members.values()
        ]


@dataclass(frozen=True, slots=True)
class LaunchedImportance:
    """Pairs of caption and image that a device may still be computing.

    Attributes:
        ends: Place of the token that ends each caption.
        members: Numbers of the captions of each forward pass.
        results: The answers of `WordImportance.signed` in each forward pass, one behind the other.
    """

    tokenizer: Any
    captions: Sequence[str]
    ends: Sequence[int]
    members: Sequence[Sequence[int]]
    results: OnTheWay

    def wait(self) -> list[CaptionImportance]:
        """Wait for these pairs, and for nothing that was started later, and return their answers in order."""
        arrived = self.results.wait()
        found: dict[int, CaptionImportance] = {}
        for part, signed, cosines in zip(self.members, arrived[::2], arrived[1::2], strict=True):
            for own, cosine, place in zip(signed, cosines, part, strict=True):
                positive = np.maximum(own[1 : self.ends[place]], 0)
                total = positive.sum(dtype=np.float64)
                shares = positive / total if np.isfinite(total) and total > 0 else np.zeros_like(positive)
                pieces = pieces_of(self.tokenizer, self.captions[place], len(shares))
                found[place] = CaptionImportance(tuple(pieces), shares.astype(np.float32), float(cosine))
        return [found[place] for place in range(len(self.captions))]


@dataclass(frozen=True, slots=True)
class AskedImportance:
    """The importance of captions that a device may still be computing, and the numbers of their record and caption."""

    asked: Sequence[tuple[int, int]]
    launched: LaunchedImportance

    def wait(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that were asked about, with the importance of each of their phrases."""
        answers = dict(zip(self.asked, self.launched.wait(), strict=True))

        def known(phrase: Phrase, number: int) -> Phrase:
            share = answers[number, phrase.caption_index].share_of(phrase.start, phrase.end)
            return replace(phrase, importance=share)

        return [
            replace(record, phrases=tuple(known(phrase, number) for phrase in record.phrases))
            for number, record in enumerate(records)
        ]


class WordImportance:
    """Importance of the words of captions for their images. The model is only read.

    Raises ConfigError, with the reason, where it is not defined on the model's text tower.
    """

    def __init__(self, config: ExplainerConfig, model: ClipModel) -> None:
        self.config = config
        self.image_tower, self.side = model.tower, model.text_side()
        tower = self.side.tower
        self.blocks = max(1, round(config.importance_depth * len(tower.blocks)))
        # As in `grad_eclip`: gradients of a unit vector's cosine are too small for 16 bits.
        self.precision = torch.promote_types(tower.dtype, torch.float32)
        wide = tower.dtype == self.precision
        self.exact_head = tower if wide else tower.float_head()
        self.exact_blocks = tuple(block if wide else block.float() for block in tower.blocks[-self.blocks :])

    def __call__(self, captions: Sequence[str], embeddings: Tensor) -> list[CaptionImportance]:
        """Return the importance of the tokens of captions, given the embedding (B, E) of each one's image in any scale.

        Raises ValueError if the numbers differ.
        """
        return self.started(captions, embeddings).wait()

    @torch.no_grad()
    def of_image(self, rgb: NDArray[np.uint8], captions: Sequence[str]) -> list[CaptionImportance]:
        """Return the importance of the tokens of captions for one image, uint8 (height, width, 3)."""
        embedding = self.image_tower.encode(torch.from_numpy(rgb[None])).float()
        return self(captions, embedding.expand(len(captions), -1))

    def started_for(self, records: Sequence[Record], embeddings: Tensor) -> AskedImportance:
        """Let the device compute the importance of the phrases of records, whose images have these embeddings (B, E).

        Each caption that has a phrase is looked at once, as it stands, whatever the templates of the phrases are.
        """
        asked = [
            (number, index)
            for number, record in enumerate(records)
            for index in sorted({phrase.caption_index for phrase in record.phrases})
        ]
        captions = [records[number].sample.captions[index] for number, index in asked]
        images = to_device(torch.tensor([number for number, _ in asked]), embeddings.device)
        return AskedImportance(asked, self.started(captions, embeddings[images]))

    @torch.no_grad()
    def started(self, captions: Sequence[str], embeddings: Tensor) -> LaunchedImportance:
        """Let the device compute all that `__call__` returns, with its arguments and errors, and do not wait for it."""
        if len(captions) != len(embeddings):
            raise ValueError(f"expected an image embedding for each caption, got {len(embeddings)} for {len(captions)}")
        tower = self.side.tower
        tokens: Tensor = self.side.tokenizer(list(captions))
        images = F.normalize(embeddings.to(tower.device, self.precision), dim=-1)
        ends = tower.ends_of(tokens)
        lengths = torch.full_like(ends, tokens.shape[1]) if self.config.importance_weight == "all" else ends + 1
        members: list[list[int]] = []
        found: list[Tensor] = []
        for length, rows in by_length(lengths):
            own = to_device(tokens[rows, :length], tower.device)
            found += self.signed(own, images[to_device(rows, tower.device)])
            members.append(rows.tolist())
        return LaunchedImportance(self.side.tokenizer, captions, ends.tolist(), members, OnTheWay(found))

    def signed(self, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the importance (B, T) of pairs before the ReLU, and their cosines (B,).

        Of the answer only the tokens between the first and the last of a text mean anything.

        Args:
            tokens: Numbers of tokens (B, T).
            images: Unit embeddings (B, E).
        """
        tower = self.side.tower
        first = len(tower.blocks) - self.blocks
        ends = tower.ends_of(tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # The row itself is not among the others; behind it there is nothing that it sees.
        unseen = places >= ends[:, None]
        x = tower.embed(tokens)
        for block in tower.blocks[:first]:
            q, k, v = block.project(x)
            x = block.finish(x, attend_back(q, k, v, block.heads))
        row = x[torch.arange(len(tokens), device=tokens.device), ends].to(self.precision)
        steps, weights = [], []
        for block, exact in zip(tower.blocks[first:], self.exact_blocks, strict=True):
            heads = 1 if self.config.importance_heads == "single" else block.heads
            if block is tower.blocks[-1]:
                k, v = block.project_keys_values(x)
            else:
                q, k, v = block.project(x)
                x = block.finish(x, attend_back(q, k, v, heads))
            keys, values = k.to(self.precision), v.to(self.precision)
            row, step = class_forward(exact, row, keys, values, heads, unseen)
            steps.append(step)
            weights.append(self._weight(step, keys, (places > 0) & ~unseen))
        embedding = self.exact_head.head(row)
        gradients, cosines = cosine_gradients(embedding, images[:, None])
        slopes = attention_gradients(self.exact_head, row, steps, gradients)
        signed = torch.stack([slope[:, 0] * weight for slope, weight in zip(slopes, weights, strict=True)])
        return (signed.relu() if self.config.importance_rectify == "block" else signed).sum(dim=0), cosines[:, 0]

    def _weight(self, step: Step, keys: Tensor, inside: Tensor) -> Tensor | float:
        """s of the module's formula, (B, T) in 0 .. 1, and 1 where all cosines are equal or it is switched off."""
        which = self.config.importance_weight
        if which == "none":
            return 1.0
        s = F.cosine_similarity(step.q[:, None], keys, dim=-1)
        return stretched(s, torch.ones_like(inside) if which == "all" else inside, equal=1.0)
