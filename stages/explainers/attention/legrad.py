"""LeGrad (Bousselham et al., ICCV 2025, arXiv 2404.03214): gradients at the attention of several blocks, summed.

For each of the last blocks l, with its attention A_l (T x T for each head) and the tokens x_l that leave it:

    s_l = cos(proj(ln_post(mean of x_l over all tokens)), text embedding)
    H_i = sum over l of the mean over heads and rows of ReLU(ds_l / dA_l) in column i

The score of a block is made of its own tokens, so that its gradient passes through this block alone. Unlike GAME the
gradient is not multiplied by the attention, and every token's row counts.

Where one attention pools the tokens, the score is the cosine of what the pool makes of a block's tokens, and the
gradient is that at the pool's own attention, whose one row is the query's. The authors' code has this for SigLIP, with
a correction: patches whose map for the words "a photo of a" is above .8 after a min-max get no heat, because
such pools look at some patches whatever the words are. `empty_threshold: 1` switches the correction off.

Deviations: no min-max at the end, because maps are not normalised here. Of a tower that one attention pools, the trunk
may be anything, so that only the tokens that it ends with are explained, which is the authors' form with one layer;
they sum two by default.

Cost: a forward pass, and for each phrase a backward pass through each explained block; for pools products in closed
form.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens, E embedding.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosine_gradients, cosines_of
from stages.explain.config import ExplainerConfig
from stages.explainers.attention.walk import Walk, Walked, gradients_at, image_by_image, starts_of
from stages.shared.model.clip import ClipModel
from stages.shared.model.texts import TextCache
from stages.shared.model.towers.pooled import PooledTower, Pooling

EMPTY: Final = "a photo of a"
"""Words that name nothing, whose map says where a pool looks in any case."""


class LeGradConfig(ExplainerConfig):
    """LeGrad: gradients at the attention of the last blocks."""

    kind: Literal["legrad"] = "legrad"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    blocks: Literal["all"] | Annotated[int, Field(ge=1)] = 2
    """How many of the last blocks are explained; 2 in the authors' code. Without effect where one attention pools the
    tokens."""

    empty_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """Where one attention pools the tokens: share of the highest heat of words that name nothing, above which a patch
    gets no heat. 0.8 in the authors' code; at 1 no patch is above it."""


class LeGrad(Explainer[LeGradConfig]):
    """Gradients of the blocks' own scores at their attention. `similarity` is the cosine of image and phrase.

    Raises ConfigError for more blocks than the model has.
    """

    config_type = LeGradConfig
    towers = ("class_token", "attention_pool", "latent_pool")
    needs = "an attention that makes the embedding"
    cost = "backward"

    def __init__(self, config: LeGradConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        self.pooled = tower.float_head() if isinstance(tower, PooledTower) else None
        self.walk = None if isinstance(tower, PooledTower) else Walk(model, self.config.blocks, self.affinity.block)
        self.empty = TextCache(model)

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        if self.pooled is None:
            return image_by_image(self._of_blocks, rgb, texts)
        return self._of_pool(self.pooled, rgb, texts)

    def _of_blocks(self, rgb: Tensor, texts: Tensor) -> Maps:
        assert self.walk is not None  # noqa: S101
        walked = self.walk(rgb)
        values = torch.stack([self._of_block(self.walk, walked, n, texts) for n in range(len(walked.outputs))])
        embedding = walked.embedding.detach()
        return Maps(values.sum(dim=0), self._cosines(embedding, texts), None, walked.early, embedding)

    def _of_block(self, walk: Walk, walked: Walked, number: int, texts: Tensor) -> Tensor:
        """Maps (1, P, N) of one of the walked blocks."""
        attention = walked.attention[number]
        with torch.enable_grad():
            meaning = walk.tower.head(walked.outputs[number].mean(dim=1))
        starts, _ = starts_of(meaning, texts, self.config.phrases_per_step)
        found = [gradient.relu().mean(dim=(1, 2)) for (gradient,) in gradients_at(meaning, [attention], starts)]
        return torch.stack(found, dim=1)[..., 1:]

    def _cosines(self, embedding: Tensor, texts: Tensor) -> Tensor:
        return torch.cat([cosines_of(embedding, part) for part in texts.split(self.config.phrases_per_step, dim=1)], 1)

    @torch.no_grad()
    def _of_pool(self, tower: PooledTower, rgb: Tensor, texts: Tensor) -> Maps:
        seen = tower.look(rgb)
        embedding = tower.pool.embedding(seen)
        nothing = self.empty([EMPTY])[None].expand(len(rgb), -1, -1)
        hot, _ = _pool_maps(tower, seen, embedding, nothing)
        low, high = hot.amin(dim=-1, keepdim=True), hot.amax(dim=-1, keepdim=True)
        kept = hot - low <= self.config.empty_threshold * (high - low)
        values, cosines = [], []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            heat, cosine = _pool_maps(tower, seen, embedding, part)
            values.append(heat * kept)
            cosines.append(cosine)
        return Maps(torch.cat(values, dim=1), torch.cat(cosines, dim=1), None, seen.tokens, embedding)


def _pool_maps(tower: PooledTower, seen: Pooling, embedding: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, P, N) without the correction, and cosines (B, P)."""
    starts, cosines = cosine_gradients(embedding, texts)
    return tower.pool.back_to_attention(seen, starts).relu().mean(dim=1), cosines
