"""A walk through a tower in float32, image by image, with the tensors at which methods take gradients of the cosine.

`Walk` goes through the last blocks of a vision transformer, with their attention in the graph.
For each walked block with tokens x (class token 0, patches 1..N):

    z = ln_1(x), [q, k, v] = z W_in + b_in
    A = softmax(q k' / sqrt(D / H))                   one matrix per head, rows sum to 1
    y = x + (A v) W_out + b_out, then the MLP

No hook is set, no weight carries a gradient, and `BlockTensors` owns the graph. Blocks before
the first walked one compute in the model's own precision and have no graph. One image is walked
at a time, because the attention of a whole batch would fill the memory.

Shapes: B images (1 here), P phrases, H heads, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from phrasebox.stages.explain.base import ConfigT, Explainer
from phrasebox.stages.explain.maps import Maps, gradients_at_embedding
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.pooled import TrunkTower, by_tower
from phrasebox.stages.model.towers.vision import attention_weights, join_heads


class SingleImageExplainer(Explainer[ConfigT]):
    """An explainer that computes the maps of one image at a time."""

    one_by_one = True

    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        images = [self._maps_of_image(image) for image in rgb.split(1)]
        tokens = [maps.tokens for maps in images if maps.tokens is not None]

        def heat(texts: Tensor) -> Tensor:
            return torch.cat([maps.heat(part) for maps, part in zip(images, texts.split(1), strict=True)])

        return Maps(
            heat=heat,
            embedding=torch.cat([maps.embedding for maps in images]),
            tokens=torch.cat(tokens) if tokens else None,
        )

    @abstractmethod
    def _maps_of_image(self, rgb: Tensor) -> Maps:
        """Return the maps of one image, uint8 (1, height, width, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTensors:
    """The tensors of one image, float32 and in one graph, with an entry for each walked block.

    Attributes:
        early: Patches (1, N, D), see `Maps.tokens`; without a graph, in the model's precision.
        tokens: x (1, T, D), and in the end the tokens after the last block: one more than there
            are blocks.
        normed: z (1, T, D).
        attention: A (1, H, T, T); row i has the weights of token i.
        embedding: Embedding of the image (1, E), not normalised.
    """

    early: Tensor | None
    tokens: Sequence[Tensor]
    normed: Sequence[Tensor]
    attention: Sequence[Tensor]
    embedding: Tensor


class Walk:
    """Walks the last `count` blocks of a transformer with a class token, which is only read; all without a count.

    `BlockTensors.early` are the patches before the block `early_block`, from 0; None without
    that number.
    """

    def __init__(self, model: ClipModel, count: int | None = None, early_block: int | None = None) -> None:
        self.tower = by_tower(model.tower, blocks=lambda tower: tower)
        self.first = 0 if count is None else max(0, len(self.tower.blocks) - count)
        self.blocks = [block.float() for block in self.tower.blocks[self.first :]]
        self.early_block = early_block

    @torch.enable_grad()
    def __call__(self, rgb: Tensor) -> BlockTensors:
        """One image, uint8 (1, height, width, 3) -> its tensors in the blocks."""
        with torch.no_grad():
            x, early = self.tower.tokens_before(rgb, self.first, self.early_block)
        x = x.float().requires_grad_()
        tokens = [x]
        normed = []
        attention = []
        for number, block in enumerate(self.blocks, self.first):
            early = x.detach() if number == self.early_block else early
            z = block.ln_1(x)
            q, k, v = block.project_heads(z)
            a = attention_weights(q, k)
            x = block.finish(x, join_heads(a @ v))
            normed.append(z)
            attention.append(a)
            tokens.append(x)
        return BlockTensors(
            early=None if early is None else early[:, self.tower.prefix_tokens :],
            tokens=tokens,
            normed=normed,
            attention=attention,
            embedding=self.tower.head(x[:, 0]),
        )


class Trace(NamedTuple):
    """A tower's embedding of one image as a function of its features.

    Attributes:
        features: (1, T, D), where gradients are taken; the last N are the patches'.
        embedding: The embedding (1, E), in the features' graph.
        tokens: See `Maps.tokens`.
    """

    features: Tensor
    embedding: Tensor
    tokens: Tensor | None


def trace_tokens(tower: TrunkTower, rgb: Tensor) -> Trace:
    """Trace an image, uint8 (1, height, width, 3), from the tokens that leave the trunk."""
    tokens = tower.embed(rgb).float().requires_grad_()
    return Trace(tokens, tower.embedding_of(tokens, tower.grid_of(rgb)), tokens.detach())


def phrase_gradients(
    embedding: Tensor, tensors: Sequence[Tensor], texts: Tensor, scale: float = 1.0
) -> Iterator[Sequence[Tensor]]:
    """Yield the gradients at tensors of each phrase's cosine times `scale`, see `gradients_at`.

    The cosine is that of an embedding (1, E) and of unit texts (1, P, E).
    """
    return gradients_at(embedding, tensors, scale * gradients_at_embedding(embedding.detach(), texts)[0])


def gradients_at(
    embedding: Tensor, tensors: Sequence[Tensor], starts: Tensor
) -> Iterator[Sequence[Tensor]]:
    """Yield the gradients at tensors in the graph of an embedding (1, E), once for each row of `starts` (P, E).

    A row is the gradient of a phrase's score at the embedding. Rows of zeros, as texts that only
    fill up have them, cost nothing.
    """
    for start in starts:
        if start.any():
            yield torch.autograd.grad(embedding, tensors, start[None], retain_graph=True)
        else:
            yield list(map(torch.zeros_like, tensors))
