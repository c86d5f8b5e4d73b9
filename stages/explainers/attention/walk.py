"""A tower walked in float32, image by image, with the tensors in it that a method differentiates the cosine by.

`Walk` goes through the last blocks of a vision transformer, with their attention in the graph. For each walked block
with tokens x (class token 0, patches 1..N):

    z = ln_1(x), [q, k, v] = z W_in + b_in
    A = softmax(q k' / sqrt(D / H))                   one matrix per head, rows sum to 1
    y = x + (A v) W_out + b_out, then the MLP

No hook is set, no weight carries a gradient, and the graph is gone with the `Walked` that holds it. Blocks before the
first walked one compute in the model's own precision and have no graph. One image is walked at a time, because the
attention of a whole batch would fill the memory.

Shapes: B images (1 here), P phrases, H heads, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.explain.base import ATTENDING, ConfigT, Explainer
from stages.explain.maps import Maps, concatenate_maps, cosine_gradients
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import TowerKind
from stages.shared.model.towers.pooled import Ask, AttentionPool, AveragedTower, PooledTower, Pooling
from stages.shared.model.towers.vision import VisionTower, split_heads

Trunked = PooledTower | AveragedTower
"""A tower whose tokens leave a trunk, which is not walked."""


class OneByOne(Explainer[ConfigT]):
    """An explainer that computes the maps of one image at a time."""

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return concatenate_maps([self._of_image(*own) for own in zip(rgb.split(1), texts.split(1), strict=True)])

    @abstractmethod
    def _of_image(self, rgb: Tensor, texts: Tensor) -> Maps:
        """Compute the maps of one image; arguments as in `maps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """The tensors of one image, float32 and in one graph, with an entry for each walked block."""

    early: Tensor | None  # (1, N, D), see `Maps.tokens`; without a graph, in the model's precision
    inputs: tuple[Tensor, ...]  # (1, T, D), x
    normed: tuple[Tensor, ...]  # (1, T, D), z
    attention: tuple[Tensor, ...]  # (1, H, T, T), A; row i is where token i looks
    outputs: tuple[Tensor, ...]  # (1, T, D), the tokens after the block
    embedding: Tensor  # (1, E), of the image, not normalised


class Walk:
    """Walks the last `blocks` of a transformer with a class token, which is only read.

    `kept` is the number of the block, from 0, whose incoming patches are `Walked.early`; None: not wanted. Raises
    ConfigError, which names `setting`, for more blocks than the model has.
    """

    def __init__(
        self, model: ClipModel, blocks: int | Literal["all"], kept: int | None = None, setting: str = "blocks"
    ) -> None:
        tower = model.tower
        assert isinstance(tower, VisionTower)  # noqa: S101
        layers = len(tower.blocks)
        if blocks != "all" and blocks > layers:
            raise ConfigError(f"explain.{setting}: {model.name} has {layers} blocks, not {blocks}")
        self.tower = tower.float_head()
        self.first = 0 if blocks == "all" else layers - blocks
        self.blocks = tuple(block.float() for block in tower.blocks[self.first :])
        self.kept = kept

    @torch.enable_grad()
    def __call__(self, rgb: Tensor) -> Walked:
        """One image, uint8 (1, height, width, 3) -> what it leaves behind."""
        with torch.no_grad():
            x, early = self.tower.tokens_before(rgb, self.first, self.kept)
        inputs = []
        normed = []
        attention = []
        outputs = []
        x = x.float().requires_grad_()
        for number, block in enumerate(self.blocks, self.first):
            early = x.detach() if number == self.kept else early
            z = block.ln_1(x)
            q, k, v = (split_heads(part, block.heads) for part in block.qkv(z).chunk(3, dim=-1))
            a = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            inputs.append(x)
            normed.append(z)
            attention.append(a)
            x = block.finish(x, (a @ v).transpose(1, 2).flatten(2))
            outputs.append(x)
        return Walked(
            early=None if early is None else early[:, 1:],
            inputs=tuple(inputs),
            normed=tuple(normed),
            attention=tuple(attention),
            outputs=tuple(outputs),
            embedding=self.tower.head(x[:, 0]),
        )


class Walker(OneByOne[ConfigT]):
    """An explainer that walks the last `blocks` of a transformer with a class token."""

    towers: ClassVar[tuple[TowerKind, ...]] = ("class_token",)
    needs = "transformer blocks with a class token"

    def __init__(self, config: ConfigT, model: ClipModel, blocks: int | Literal["all"] = "all") -> None:
        super().__init__(config, model)
        if isinstance(model.tower, VisionTower):
            self.walk = Walk(model, blocks, self.affinity.block)

    def _of_image(self, rgb: Tensor, texts: Tensor) -> Maps:
        walked = self.walk(rgb)
        values, cosines = self._of_blocks(walked, texts)
        return Maps(values=values, cosines=cosines, tokens=walked.early, embedding=walked.embedding.detach())

    @abstractmethod
    def _of_blocks(self, walked: Walked, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute maps (1, P, N) and cosines (1, P) of one image for unit texts (1, P, E)."""


class AtAttention(Walker[ConfigT]):
    """A `Walker` that looks at the pool of a tower whose tokens one attention pools."""

    towers = ATTENDING
    needs = "an attention that makes the embedding"

    def __init__(self, config: ConfigT, model: ClipModel, blocks: int | Literal["all"]) -> None:
        super().__init__(config, model, blocks)
        self._pooled = model.tower.float_head() if isinstance(model.tower, PooledTower) else None

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        if self._pooled is None:
            return super().maps(rgb, texts)
        with torch.no_grad():
            seen = self._pooled.look(rgb)
            values, cosines = self._of_pool(self._pooled.pool, seen, texts)
            embedding = self._pooled.pool.embedding(seen)
        return Maps(values=values, cosines=cosines, tokens=seen.tokens, embedding=embedding)

    @abstractmethod
    def _of_pool(self, pool: AttentionPool, seen: Pooling, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute maps (B, P, N) and cosines (B, P) for unit texts (B, P, E)."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A tower's answer to one image as a function of some tensor in it."""

    leaf: Tensor  # (1, T, D), what is differentiated by; its last N tokens are the patches
    embedding: Tensor  # (1, E), in the leaf's graph
    tokens: Tensor | None  # see `Maps.tokens`


def traced(tower: Trunked, rgb: Tensor, ask: Ask | None = None) -> Traced:
    """Trace one image from the tokens that leave the trunk; `ask` as in `AttentionPool.look`."""
    leaf = tower.embed(rgb).float().requires_grad_()
    grid_hw = tower.placement.grid_hw(rgb.shape[1], rgb.shape[2])
    return Traced(leaf, embedding_of(tower, leaf, grid_hw, ask), patches_of(leaf.detach(), grid_hw))


def embedding_of(tower: Trunked, tokens: Tensor, grid_hw: tuple[int, int], ask: Ask | None = None) -> Tensor:
    """Tokens (B, T, D) that leave the trunk -> embeddings (B, E), not normalised."""
    if isinstance(tower, AveragedTower):
        return tower.finish(tokens.mean(dim=1))
    return tower.pool.embedding(tower.pool.look(tokens, grid_hw, ask=ask))


def patches_of(tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Tokens (B, T, D) of a grid -> the patches (B, N, D), which are the last."""
    return tokens[:, -grid_hw[0] * grid_hw[1] :]


def slopes(
    score: Tensor, wanted: Sequence[Tensor], texts: Tensor, scale: float = 1.0
) -> tuple[Iterator[tuple[Tensor, ...]], Tensor]:
    """Return the gradients of each phrase's cosine times `scale`, see `gradients_at`, and the cosines (1, P).

    The cosine is that of `score` (1, E), which stands for the image's embedding, and of unit texts (1, P, E).
    """
    starts, cosines = cosine_gradients(score.detach(), texts)
    return gradients_at(score, wanted, scale * starts[0]), cosines


def gradients_at(score: Tensor, wanted: Sequence[Tensor], starts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield a gradient for each wanted tensor of the graph of `score` (1, E), once for each row of `starts` (P, E).

    A row is the gradient of a phrase's score at `score`. Rows of zeros, which only fill up, cost nothing.
    """
    for start in starts:
        if start.any():
            yield torch.autograd.grad(score, wanted, start[None], retain_graph=True)
        else:
            yield tuple(torch.zeros_like(each) for each in wanted)
