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
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.contract.values import Sides
from stages.explain.base import ATTENDING, ConfigT, Explainer
from stages.explain.maps import Maps, concatenate_maps, gradients_at_embedding
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import TowerKind
from stages.shared.model.towers.pooled import (
    AttentionPool,
    AveragedTower,
    PooledTower,
    Pooling,
    by_tower,
)
from stages.shared.model.towers.vision import VisionTower, attention_weights, join_heads

TrunkTower = PooledTower | AveragedTower
"""A tower whose tokens leave a trunk, which is not walked."""


class SingleImageExplainer(Explainer[ConfigT]):
    """An explainer that computes the maps of one image at a time."""

    one_by_one = True

    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return concatenate_maps([self._maps_of_image(image) for image in rgb.split(1)])

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
    tokens: tuple[Tensor, ...]
    normed: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    embedding: Tensor


class Walk:
    """Walks the last `blocks` of a transformer with a class token, which is only read.

    `BlockTensors.early` are the patches before the block `early_block`, from 0; None without
    that number. Raises ConfigError for more blocks than the model has.
    """

    def __init__(
        self, model: ClipModel, blocks: int | Literal["all"], early_block: int | None = None
    ) -> None:
        self.tower = by_tower(model.tower, blocks=lambda tower: tower)
        layers = len(self.tower.blocks)
        if blocks != "all" and blocks > layers:
            raise ConfigError(f"{model.name} has {layers} blocks, not {blocks}", key="explain.blocks")
        self.first = 0 if blocks == "all" else layers - blocks
        self.blocks = tuple(block.float() for block in self.tower.blocks[self.first :])
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
            normed.append(z)
            attention.append(a)
            x = block.finish(x, join_heads(a @ v))
            tokens.append(x)
        return BlockTensors(
            early=None if early is None else early[:, 1:],
            tokens=tuple(tokens),
            normed=tuple(normed),
            attention=tuple(attention),
            embedding=self.tower.head(x[:, 0]),
        )


class Walker(SingleImageExplainer[ConfigT]):
    """An explainer that walks the last `blocks` of a transformer with a class token."""

    towers: ClassVar[tuple[TowerKind, ...]] = ("class_token",)
    needs = "transformer blocks with a class token"

    def __init__(self, config: ConfigT, model: ClipModel, blocks: int | Literal["all"] = "all") -> None:
        super().__init__(config, model)
        if isinstance(model.tower, VisionTower):
            self.walk = Walk(model, blocks, self.early_block)

    def _maps_of_image(self, rgb: Tensor) -> Maps:
        tensors = self.walk(rgb)
        heat = partial(self._explain_blocks, tensors)
        return Maps(heat=heat, embedding=tensors.embedding.detach(), tokens=tensors.early)

    @abstractmethod
    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        """Compute the maps (1, P, N) of one image for unit texts (1, P, E)."""


class AttentionExplainer(Walker[ConfigT]):
    """A `Walker` that looks at the pool of a tower whose tokens one attention pools."""

    towers = ATTENDING
    needs = "an attention that makes the embedding"

    def __init__(self, config: ConfigT, model: ClipModel, blocks: int | Literal["all"]) -> None:
        super().__init__(config, model, blocks)
        self._pooled_tower = model.tower.float_head() if isinstance(model.tower, PooledTower) else None
        self.one_by_one = self._pooled_tower is None

    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        tower = self._pooled_tower
        if tower is None:
            return super().maps(rgb)
        with torch.no_grad():
            pooling = tower.look(rgb)
            heat = partial(self._explain_pool, tower.pool, pooling)
            return Maps(heat=heat, embedding=tower.pool.embedding(pooling), tokens=pooling.tokens)

    @abstractmethod
    def _explain_pool(self, pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
        """Compute the maps (B, P, N) for unit texts (B, P, E)."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A tower's embedding of one image as a function of a tensor in it.

    Attributes:
        leaf: The tensor (1, T, D), where gradients are taken; its last N tokens are the patches.
        embedding: The embedding (1, E), in the leaf's graph.
        tokens: See `Maps.tokens`.
    """

    leaf: Tensor
    embedding: Tensor
    tokens: Tensor | None


def run_trunk(tower: TrunkTower, rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, T, D) that leave the trunk, float32, and those of the patches, which are the last."""
    tokens = tower.embed(rgb).float()
    return tokens, patches_of(tokens, tower.grid_of(rgb))


def trace_tower(tower: TrunkTower, rgb: Tensor) -> Trace:
    """Trace one image from the tokens that leave the trunk."""
    leaf, patches = run_trunk(tower, rgb)
    embedding = embedding_of(tower, leaf.requires_grad_(), tower.grid_of(rgb))
    return Trace(leaf, embedding, patches.detach())


def embedding_of(tower: TrunkTower, tokens: Tensor, grid_hw: Sides) -> Tensor:
    """Tokens (B, T, D) that leave the trunk -> embeddings (B, E), not normalised."""
    if isinstance(tower, AveragedTower):
        return tower.finish(tokens.mean(dim=1))
    return tower.pool.embedding(tower.pool.look(tokens, grid_hw))


def patches_of(tokens: Tensor, grid_hw: Sides) -> Tensor:
    """Tokens (B, T, D) of a grid -> the patches (B, N, D), which are the last."""
    return tokens[:, -grid_hw[0] * grid_hw[1] :]


def phrase_gradients(
    embedding: Tensor, tensors: Sequence[Tensor], texts: Tensor, scale: float = 1.0
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the gradients at tensors of each phrase's cosine times `scale`.

    The cosine is that of an embedding (1, E), in whose graph the tensors are, and of unit texts
    (1, P, E). Texts of zeros, which only fill up, cost nothing.
    """
    for start in scale * gradients_at_embedding(embedding.detach(), texts)[0]:
        if start.any():
            yield torch.autograd.grad(embedding, tensors, start[None], retain_graph=True)
        else:
            yield tuple(map(torch.zeros_like, tensors))
