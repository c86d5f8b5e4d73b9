"""How important each word of a caption is for the caption's fit to its image: Grad-ECLIP on the text side.

Source: Zhao et al., "Gradient-based Visual Explanation for Transformer-based CLIP", ICML 2024, and its journal version
arXiv 2502.18816; the formula below is what their notebook on texts evaluates.

For one explained block of the text transformer, e the row of the token that ends the text (EOS), a the attention
weights of that row, v the values and o = sum_j a_j v_j:

    c   = cos(image embedding, text embedding)
    w   = dc / do                                  at row e, one weight per channel
    I_j = s_j * sum_d w_d v_j,d                    signed

summed over the blocks, with a ReLU. The tokens of the caption alone are kept, and divided by their sum: each token has
a share of the caption's positive importance. A word has the sum of its tokens, a phrase the sum of the tokens in its
span. sum_d w_d v_j,d is dc / da_j summed over heads.

**The gradient is exact.** The embedding is made of row e alone, and under the causal mask no other token of the caption
sees row e. What o changes at row e of one block is therefore row e of the later blocks and nothing else: holding the
keys and values of the other tokens loses nothing of w, whatever the number of blocks. All gradients are products with
one row per caption.

Deviations, and the setting that restores the paper:
- the network's own heads instead of one head over the full width (`importance_heads: single`), whose cosine is not the
  model's;
- no weight s_j, which is a min-max of cosines over all 77 tokens of the context (`importance_weight: all`);
- the ReLU on each block, and not on their sum (`importance_rectify: sum`);
- all blocks; theirs are the last 8 of 12 (`importance_depth: 0.67`);
- where no token has a positive importance, all shares are 0 instead of 0 / 0.

Cost: the time of 1.6 text forwards for each caption (ViT-B-16, one core); no image is looked at again.

Shapes: B pairs of caption and image, T tokens, H heads, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.explain.base import cosine_gradients
from stages.explain.config import ExplainerConfig
from stages.explain.grad_eclip import Step, attention_gradients, class_forward
from stages.shared.model.clip import ClipModel
from stages.shared.model.device import OnTheWay, to_device
from stages.shared.model.texts import by_length
from stages.shared.model.token_spans import Piece, pieces_of
from stages.shared.model.towers.text import attend_back


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption as the model's tokenizer cuts it.

    Attributes:
        start: its first character in the caption.
        end: the character behind its last.
        importance: its share of the caption's positive importance, 0 .. 1.
    """

    start: int
    end: int
    importance: float


@dataclass(frozen=True, slots=True)
class CaptionImportance:
    """What the tokens of one caption count for one image.

    Attributes:
        pieces: the tokens of the caption that the model sees.
        shares: float32, of each of them; they are >= 0, and their sum is 1, or 0 where none is positive.
        cosine: of image and caption; with a single head not the model's own.
    """

    pieces: tuple[Piece, ...]
    shares: NDArray[np.float32]
    cosine: float

    def share_of(self, start: int, end: int) -> float | None:
        """The share of the characters [start, end) of the caption; None where the model sees none of them."""
        inside = [place for place, piece in enumerate(self.pieces) if piece.start < end and start < piece.end]
        return min(1.0, float(self.shares[inside].sum(dtype=np.float64))) if inside else None

    def words(self) -> list[Word]:
        """The words of the caption that the model sees, in order."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedImportance:
    """Pairs of caption and image that a device may still be computing.

    Attributes:
        tokenizer: the model's.
        captions: in order.
        ends: place of the token that ends each of them.
        members: numbers of the captions of each forward pass, whose first rows are theirs.
        results: what `WordImportance.signed` gives in each forward pass, one behind the other.
    """

    tokenizer: Any
    captions: Sequence[str]
    ends: Sequence[int]
    members: Sequence[Sequence[int]]
    results: OnTheWay

    def wait(self) -> list[CaptionImportance]:
        """Wait for these pairs, and for nothing that was started later, and make their answers."""
        arrived = self.results.wait()
        found: dict[int, tuple[NDArray[np.float32], float]] = {}
        for part, signed, cosines in zip(self.members, arrived[::2], arrived[1::2], strict=True):
            for row, place in enumerate(part):
                own = np.maximum(signed[row, 1 : self.ends[place]], 0)
                found[place] = (_shares(own), float(cosines[row]))
        answers = []
        for place, caption in enumerate(self.captions):
            shares, cosine = found[place]
            pieces = pieces_of(self.tokenizer, caption, len(shares))
            answers.append(CaptionImportance(tuple(pieces), shares, cosine))
        return answers


class WordImportance:
    """Importance of the words of captions for their images.

    Args:
        config: its `importance_...` settings are used.
        model: it is only read.

    Raises:
        ConfigError: the importance of words is not defined on the model's text tower, and why.
    """

    def __init__(self, config: ExplainerConfig, model: ClipModel) -> None:
        self.config = config
        self.side = model.text_side()
        tower = self.side.tower
        self.blocks = max(1, round(config.importance_depth * len(tower.blocks)))
        # As in `grad_eclip`: gradients of a unit vector's cosine are too small for 16 bits.
        self.precision = torch.promote_types(tower.dtype, torch.float32)
        wide = tower.dtype == self.precision
        self.exact_head = tower if wide else tower.float_head()
        self.exact_blocks = tuple(block if wide else block.float() for block in tower.blocks[-self.blocks :])

    def __call__(self, captions: Sequence[str], embeddings: Tensor) -> list[CaptionImportance]:
        """The importance of the tokens of each caption.

        Args:
            captions: any texts.
            embeddings: (B, E) in any scale, of the image of each caption.

        Raises:
            ValueError: the numbers differ.
        """
        return self.started(captions, embeddings).wait()

    @torch.no_grad()
    def started(self, captions: Sequence[str], embeddings: Tensor) -> LaunchedImportance:
        """Give the device all that `__call__` computes, and do not wait for it; arguments and errors are the same."""
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
        return LaunchedImportance(
            tokenizer=self.side.tokenizer,
            captions=captions,
            ends=ends.tolist(),
            members=members,
            results=OnTheWay(found),
        )

    def signed(self, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Importance before the ReLU and the cosine, of pairs.

        Args:
            tokens: numbers of tokens (B, T).
            images: unit embeddings (B, E).

        Returns:
            (B, T), of which only the tokens between the first and the last of the text mean anything; (B,).
        """
        tower = self.side.tower
        first = len(tower.blocks) - self.blocks
        ends = tower.ends_of(tokens)
        rows = torch.arange(len(tokens), device=tokens.device)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # The row itself is not among the others; behind it there is nothing that it sees.
        unseen = places >= ends[:, None]
        inside = (places > 0) & ~unseen
        x = tower.embed(tokens)
        for block in tower.blocks[:first]:
            q, k, v = block.project(x)
            x = block.finish(x, attend_back(q, k, v, block.heads))
        row = x[rows, ends].to(self.precision)
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
            weights.append(self._weight(step, keys, inside))
        embedding = self.exact_head.head(row)
        gradients, cosines = cosine_gradients(embedding, images[:, None])
        slopes = attention_gradients(self.exact_head, row, steps, gradients)
        signed = [
            slope[:, 0] if weight is None else slope[:, 0] * weight
            for slope, weight in zip(slopes, weights, strict=True)
        ]
        if self.config.importance_rectify == "block":
            signed = [each.relu() for each in signed]
        return torch.stack(signed).sum(dim=0), cosines[:, 0]

    def _weight(self, step: Step, keys: Tensor, inside: Tensor) -> Tensor | None:
        """s of the module's formula, (B, T) in 0 .. 1, and 1 where all cosines are equal; None if switched off."""
        which = self.config.importance_weight
        if which == "none":
            return None
        s = F.cosine_similarity(step.q[:, None], keys, dim=-1)
        taken = torch.ones_like(inside) if which == "all" else inside
        low = s.masked_fill(~taken, torch.inf).amin(dim=1, keepdim=True)
        high = s.masked_fill(~taken, -torch.inf).amax(dim=1, keepdim=True)
        spread = high - low
        return torch.where(spread > 0, (s - low) / torch.where(spread > 0, spread, 1.0), 1.0)


def _shares(positive: NDArray[np.float32]) -> NDArray[np.float32]:
    total = positive.sum(dtype=np.float64)
    if not np.isfinite(total) or total <= 0:
        return np.zeros_like(positive)
    shares: NDArray[np.float32] = (positive / total).astype(np.float32)
    return shares
