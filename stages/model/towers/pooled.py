"""Towers that pool the tokens of a trunk, which may be anything that turns pixels into tokens.

`PooledTower`: one attention pools them (CLIP's ResNets, timm towers with attention pooling,
SigLIP). Explainers explain this attention: one query q asks all tokens, o = sum_i a_i v_i is
its output before the projection, and the rest of the tower is a function of o alone.
`AveragedTower`: they are averaged (ConvNeXt, and timm's other networks without an attention at
the end).

Shapes: B images, P phrases, N patches, T = N or N + 1 tokens, D width, H heads, E embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from phrasebox.stages.contract.values import Sides
from phrasebox.stages.model.config import TowerKind
from phrasebox.stages.model.towers.layers import (
    NOTHING,
    Chain,
    Layer,
    Linear,
    Part,
    TensorFunction,
    gradient_at,
)
from phrasebox.stages.model.towers.tower import Placement, Tower
from phrasebox.stages.model.towers.vision import Heads, VisionTower, attention_weights, split_heads

T = TypeVar("T")

Turn = Callable[[Tensor, Sides], Tensor]
"""Keys of the patches (B, N, D), heads side by side, and their grid (rows, columns) -> keys
turned by their places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """Input and output of the pool of a tower for B images.

    Attributes:
        tokens: Tokens of the patches (B, N, D).
        query: (B, D).
        keys, values: Those of the patches (B, N, D), heads side by side; keys as the query is
            compared with them.
        attention: Weights a of the patches (B, H, N). Their sum is below 1 where tokens are no
            patches.
        output: o before the projection (B, D).
        residual: Token that the pool adds to its projected output (B, 1, D'); None if it adds none.
    """

    tokens: Tensor
    query: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor
    output: Tensor
    residual: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPool(Part):
    """One query that attends to all tokens, and the way from there to the embedding.

    Attributes:
        heads: H.
        latent: Learned query before `q` (D,). None: the first token asks, which is no patch.
        prefix_tokens: Number of the first tokens that are no patches; they are attended to, too.
        norm: Layers of the tokens before the attention: a norm, or nothing.
        q, k, v: Projections of the tokens; `q` is None where the latent query is the query already.
        turn: Rotary position embedding of the patches' keys, if there is one.
        out: Projection of the attention's output.
        scale: Layers between projection and residual: LayerScale, a norm; often nothing.
        residual: Whether the query token is added to the projected output, as in a
            transformer's block.
        finish: The rest of the tower.
    """

    heads: int
    latent: Tensor | None
    prefix_tokens: int
    norm: Layer = NOTHING
    q: Linear | None
    k: Linear
    v: Linear
    turn: Turn | None = None
    out: Layer
    scale: Chain = NOTHING
    residual: bool = False
    finish: Chain

    def pool_tokens(self, tokens: Tensor, grid_hw: Sides, heads: int | None = None) -> Pooling:
        """Pool tokens (B, T, D) of a grid; `heads` overrides the number of heads."""
        z = self.norm(tokens)
        query_token = z[:, 0] if self.latent is None else self.latent.expand(len(z), -1)
        query = query_token if self.q is None else self.q(query_token)
        keys = self.k(z)
        values = self.v(z)
        if self.turn is not None:
            keys = torch.cat(
                [keys[:, : self.prefix_tokens], self.turn(keys[:, self.prefix_tokens :], grid_hw)], dim=1
            )
        output, weights = self.attend(query, keys, values, heads or self.heads)
        residual = None
        if self.residual:
            residual = tokens[:, :1] if self.latent is None else self.latent.expand(len(z), 1, -1)
        patches = slice(self.prefix_tokens, None)
        return Pooling(
            tokens=tokens[:, patches],
            query=query,
            keys=keys[:, patches],
            values=values[:, patches],
            attention=weights[:, :, patches],
            output=output,
            residual=residual,
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Query (B, D), keys and values (B, T, D) -> the output (B, D) and the weights (B, H, T)."""
        q, k, v = (split_heads(x, heads) for x in (query[:, None], keys, values))
        weights = attention_weights(q, k)
        return (weights @ v).flatten(1), weights[:, :, 0]

    def embedding(self, pooling: Pooling) -> Tensor:
        """Return the embeddings (B, E), not normalised."""
        return self._embed(pooling, pooling.output[:, None])[:, 0]

    def embedding_of_each(self, pooling: Pooling) -> Tensor:
        """Return the embedding for each patch if the pool attended to it alone (B, N, E), not normalised."""
        return self._embed(pooling, pooling.values)

    def _embed(self, pooling: Pooling, outputs: Tensor) -> Tensor:
        """Return the embeddings (B, n, E) for other outputs of the attention (B, n, D)."""
        projected = self.scale(self.out(outputs))
        return self.finish(projected if pooling.residual is None else projected + pooling.residual)

    def gradient_at_output(self, pooling: Pooling, gradient: Tensor) -> Tensor:
        """Return the gradient at the attention's output o (B, P, D), given that at the embedding (B, P, E)."""
        return gradient_at(partial(self._embed, pooling), pooling.output, gradient)

    def gradient_at_attention(self, pooling: Pooling, gradient: Tensor) -> Tensor:
        """Return the gradient at the weights of the patches (B, H, P, N), given that at the embedding (B, P, E).

        The output is linear in the weights, so that the gradient at a weight is that at the
        output, times the value.
        """
        heads = pooling.attention.shape[1]
        return (
            split_heads(self.gradient_at_output(pooling, gradient), heads)
            @ split_heads(pooling.values, heads).mT
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkTower(Tower):
    """A tower whose trunk may be anything.

    Attributes:
        placement: See `Tower`.
        trunk: Normalised pixels (B, 3, height, width) in its precision -> tokens (B, T, D), the
            patches row by row.
        dtype: Precision of the trunk.
    """

    placement: Placement
    trunk: TensorFunction
    dtype: torch.dtype
    mean: Tensor
    std: Tensor

    def embed(self, rgb: Tensor) -> Tensor:
        """See `Tower.embed`."""
        return self.trunk(self.normalise(rgb).to(self.dtype))

    def encode(self, rgb: Tensor) -> Tensor:
        """See `Tower.encode`."""
        return self.embedding_of(self.embed(rgb), self.grid_of(rgb))

    @abstractmethod
    def embedding_of(self, tokens: Tensor, grid_hw: Sides) -> Tensor:
        """Tokens (B, T, D) of a grid that leave the trunk -> embeddings (B, E), not normalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledTower(TrunkTower):
    """A trunk, and one attention that pools its tokens.

    The tokens of the trunk have positions; the query token is the first of them where it is a
    token.

    Attributes:
        kind: latent_pool where the pool's query is learned, else attention_pool.
        pool: The attention.
    """

    kind: TowerKind
    pool: AttentionPool

    def pool_tokens(self, rgb: Tensor, heads: int | None = None) -> Pooling:
        """Pool uint8 pixels (B, height, width, 3); `heads` overrides the pool's number of heads."""
        tokens = self.embed(rgb).to(self.pool.k.weight.dtype)
        return self.pool.pool_tokens(tokens, self.grid_of(rgb), heads)

    def embedding_of(self, tokens: Tensor, grid_hw: Sides) -> Tensor:
        """See `TrunkTower.embedding_of`."""
        return self.pool.embedding(self.pool.pool_tokens(tokens.to(self.pool.k.weight.dtype), grid_hw))

    def float_head(self) -> PooledTower:
        """Return the same tower with the pool and all behind it in float32."""
        return replace(self, pool=self.pool.float())


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedTower(TrunkTower):
    """A trunk, the mean of its tokens, which are all patches, and a head on the mean.

    Attributes:
        finish: Mean of the tokens (B, D) -> embedding (B, E). On single tokens it is the dense
            form of the head.
    """

    finish: Chain
    kind: TowerKind = "average_pool"

    def float_head(self) -> AveragedTower:
        """Return the same tower with the head in float32."""
        return replace(self, finish=self.finish.float())

    def embedding_of(self, tokens: Tensor, grid_hw: Sides) -> Tensor:
        """See `TrunkTower.embedding_of`."""
        return self.finish(tokens.mean(dim=1))


def by_tower(
    tower: Tower,
    *,
    blocks: Callable[[VisionTower], T] | None = None,
    pooled: Callable[[PooledTower], T] | None = None,
    averaged: Callable[[AveragedTower], T] | None = None,
) -> T:
    """Call the function for the kind of a tower, with the part behind its trunk in float32, and return its result.

    Raise TypeError if there is no function for this kind. An explainer calls this once, when it
    is built.
    """
    if blocks is not None and isinstance(tower, VisionTower):
        return blocks(tower.float_head())
    if pooled is not None and isinstance(tower, PooledTower):
        return pooled(tower.float_head())
    if averaged is not None and isinstance(tower, AveragedTower):
        return averaged(tower.float_head())
    raise TypeError(f"nothing is defined on a {type(tower).__name__}")
