"""The importance of each word of a caption for the caption's fit to its image: Grad-ECLIP on the text side.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.contract.records import Phrase, Record
from stages.explain.class_path import Held, class_path
from stages.explain.config import ExplainerConfig
from stages.explain.maps import cosine_gradients, stretched
from stages.shared.model.clip import ClipModel, by_length
from stages.shared.model.device import OnTheWay, to_device
from stages.shared.model.tokenizer import Piece, pieces_of
from stages.shared.model.towers.vision import attend


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
    """The importance of the tokens of one caption for one image."""

    pieces: tuple[Piece, ...]  # the tokens of the caption that the model sees
    shares: NDArray[np.float32]  # of each, >= 0; their sum is 1, or 0 where none is positive
    cosine: float  # of image and caption; with a single head not the model's own

    def share_of(self, start: int, end: int) -> float | None:
        """Return the share of the characters [start, end); None where the model sees none of them."""
        inside = [place for place, piece in enumerate(self.pieces) if piece.start < end and start < piece.end]
        return min(1.0, float(self.shares[inside].sum(dtype=np.float64))) if inside else None

    def words(self) -> list[Word]:
        """Return the words of the caption that the model sees, in order."""
        found = []
        for _, group in groupby(enumerate(self.pieces), key=lambda numbered: numbered[1].word):
            places, pieces = zip(*group, strict=True)
            start, end = min(piece.start for piece in pieces), max(piece.end for piece in pieces)
            found.append(Word(start, end, float(self.shares[list(places)].sum(dtype=np.float64))))
        return found


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
        """Return the importance of the tokens of captions, given each one's image as an embedding (B, E)."""
        return self.started(captions, embeddings)()

    @torch.no_grad()
    def of_image(self, rgb: NDArray[np.uint8], captions: Sequence[str]) -> list[CaptionImportance]:
        """Return the importance of the tokens of captions for one image, uint8 (height, width, 3)."""
        embedding = self.image_tower.encode(torch.from_numpy(rgb[None])).float()
        return self(captions, embedding.expand(len(captions), -1))

    def started_for(self, records: Sequence[Record], embeddings: Tensor) -> Callable[[Sequence[Record]], list[Record]]:
        """Let the device compute the importance of the phrases of records, whose images have these embeddings (B, E).

        Each caption that has a phrase is looked at once, as it stands, whatever the templates of the phrases are.
        Return a function that waits for it, and returns the records with the importance of each of their phrases.
        """
        asked = [
            (number, index)
            for number, record in enumerate(records)
            for index in sorted({phrase.caption_index for phrase in record.phrases})
        ]
        captions = [records[number].sample.captions[index] for number, index in asked]
        images = to_device(torch.tensor([number for number, _ in asked]), embeddings.device)
        wait = self.started(captions, embeddings[images])

        def arrived(records: Sequence[Record]) -> list[Record]:
            answers = dict(zip(asked, wait(), strict=True))

            def known(phrase: Phrase, number: int) -> Phrase:
                share = answers[number, phrase.caption_index].share_of(phrase.start, phrase.end)
                return replace(phrase, importance=share)

            return [
                replace(record, phrases=tuple(known(phrase, number) for phrase in record.phrases))
                for number, record in enumerate(records)
            ]

        return arrived

    @torch.no_grad()
    def started(self, captions: Sequence[str], embeddings: Tensor) -> Callable[[], list[CaptionImportance]]:
        """Let the device compute all that `__call__` returns, and return a function that waits for it alone."""
        tower, tokenizer = self.side.tower, self.side.tokenizer
        tokens: Tensor = tokenizer(list(captions))
        images = F.normalize(embeddings.to(tower.device, self.precision), dim=-1)
        ends = tower.ends_of(tokens)
        lengths = torch.full_like(ends, tokens.shape[1]) if self.config.importance_weight == "all" else ends + 1
        members: list[list[int]] = []  # numbers of the captions of each forward pass
        found: list[Tensor] = []  # the answers of `signed` in each, one behind the other
        for length, rows in by_length(lengths):
            own = to_device(tokens[rows, :length], tower.device)
            found += self.signed(own, images[to_device(rows, tower.device)])
            members.append(rows.tolist())
        under_way = OnTheWay(found)

        def arrived() -> list[CaptionImportance]:
            results = under_way.wait()
            answers: dict[int, CaptionImportance] = {}
            for part, signed, cosines in zip(members, results[::2], results[1::2], strict=True):
                for own, cosine, place in zip(signed, cosines, part, strict=True):
                    positive = np.maximum(own[1 : int(ends[place])], 0)
                    total = positive.sum(dtype=np.float64)
                    shares = positive / total if np.isfinite(total) and total > 0 else np.zeros_like(positive)
                    pieces = pieces_of(tokenizer, captions[place], len(shares))
                    answers[place] = CaptionImportance(tuple(pieces), shares.astype(np.float32), float(cosine))
            return [answers[place] for place in range(len(captions))]

        return arrived

    def signed(self, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of tokens (B, T), unit embeddings of images (B, E) -> importance (B, T) before ReLU, cosines (B,).

        Only the tokens between the first and the last of a text mean anything in it.
        """
        tower = self.side.tower
        first = len(tower.blocks) - self.blocks
        ends = tower.ends_of(tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # The row itself is not among the others; behind it there is nothing that it sees.
        unseen = places >= ends[:, None]
        x = tower.embed(tokens)
        for block in tower.blocks[:first]:
            x = block(x, causal=True)
        row = x[torch.arange(len(tokens), device=tokens.device), ends].to(self.precision)
        held = []
        for block, exact in zip(tower.blocks[first:], self.exact_blocks, strict=True):
            heads = 1 if self.config.importance_heads == "single" else block.heads
            q, k, v = block.project(x)
            keys, values = k.to(self.precision), v.to(self.precision)
            held.append(Held(block=exact, heads=heads, keys=keys, values=values, unseen=unseen))
            if block is not tower.blocks[-1]:
                x = block.finish(x, attend(q, k, v, heads, causal=True))
        path = class_path(self.exact_head, row, held, 1)
        gradients, cosines = cosine_gradients(path.embedding, images[:, None])
        inside = (places > 0) & ~unseen
        signed = torch.stack(
            [
                slopes[:, 0] * self._weight(query, each.keys, inside)
                for slopes, query, each in zip(path.gradients(gradients), path.queries, held, strict=True)
            ]
        )
        return (signed.relu() if self.config.importance_rectify == "block" else signed).sum(dim=0), cosines[:, 0]

    def _weight(self, query: Tensor, keys: Tensor, inside: Tensor) -> Tensor | float:
        """s of the module's formula, (B, T) in 0 .. 1, and 1 where all cosines are equal or it is switched off."""
        which = self.config.importance_weight
        if which == "none":
            return 1.0
        s = F.cosine_similarity(query[:, None], keys, dim=-1)
        return stretched(s, torch.ones_like(inside) if which == "all" else inside, equal=1.0)
