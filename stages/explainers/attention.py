"""Explainers that read attention: its weights, their products, and the gradient of the cosine at them.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens, E embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Final, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from phrasebox.stages.contract.values import Floats
from phrasebox.stages.explain.base import ATTENDING, ConfigT
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.maps import Maps, gradients_at_embedding, min_max
from phrasebox.stages.explainers.walk import BlockTensors, SingleImageExplainer, Walk, phrase_gradients
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import TowerKind
from phrasebox.stages.model.towers.pooled import AttentionPool, PooledTower, Pooling, by_tower
from phrasebox.stages.model.towers.vision import VisionTower

EMPTY: Final = "a photo of a"
"""Words that name nothing: their map shows where a pool looks whatever the phrase is."""

EMPTY_THRESHOLD: Final = 0.8
"""Share of the highest heat of `EMPTY` above which a patch gets no heat; the authors' value."""


@torch.no_grad()
def last_attention(model: ClipModel, rgb: Tensor) -> Tensor | None:
    """Return where the token that becomes the embedding looks in the last attention: the mean over the heads (B, N).

    Papers on explaining transformers start from this raw attention, such as Abnar and Zuidema
    (ACL 2020). DINO (Caron et al., ICCV 2021, arXiv 2104.14294) showed it for vision
    transformers.

    The images are uint8 (B, height, width, 3). None where no attention makes the embedding.
    """
    return by_tower(
        model.tower,
        blocks=lambda tower: Walk(model, 1)(rgb).attention[0][:, :, 0, tower.prefix_tokens :].mean(dim=1),
        pooled=lambda tower: tower.pool_tokens(rgb).attention.mean(dim=1),
        averaged=lambda _: None,
    )


class Walker(SingleImageExplainer[ConfigT]):
    """An explainer that walks the last blocks of a transformer with a class token.

    Attributes:
        count: How many blocks are walked, at most; None: all.
    """

    towers: ClassVar[tuple[TowerKind, ...]] = ("class_token",)
    needs = "transformer blocks with a class token"
    count: ClassVar[int | None] = None

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        super().__init__(config, model)
        if isinstance(model.tower, VisionTower):
            self.walk = Walk(model, self.count, self.early_block)

    def _maps_of_image(self, rgb: Tensor) -> Maps:
        tensors = self.walk(rgb)

        def heat(texts: Tensor) -> Tensor:
            return self._explain_blocks(tensors, texts)[..., self.walk.tower.prefix_tokens - 1 :]

        return Maps(heat=heat, embedding=tensors.embedding.detach(), tokens=tensors.early)

    @abstractmethod
    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        """Compute the heat of all tokens but the class token (1, P, T - 1) of one image for unit texts (1, P, E)."""


class AttentionExplainer(Walker[ConfigT]):
    """A `Walker` that looks at the pool of a tower whose tokens one attention pools."""

    towers = ATTENDING
    needs = "an attention that makes the embedding"

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        super().__init__(config, model)
        self._pooled_tower = model.tower.float_head() if isinstance(model.tower, PooledTower) else None
        self.one_by_one = self._pooled_tower is None

    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        tower = self._pooled_tower
        if tower is None:
            return super().maps(rgb)
        with torch.no_grad():
            pooling = tower.pool_tokens(rgb)
            heat = partial(self._explain_pool, tower.pool, pooling)
            return Maps(heat=heat, embedding=tower.pool.embedding(pooling), tokens=pooling.tokens)

    @abstractmethod
    def _explain_pool(self, pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
        """Compute the maps (B, P, N) for unit texts (B, P, E)."""


def _pool_gradients(pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
    """Return dc/da (B, H, P, N) of a pool for unit texts (B, P, E)."""
    return pool.gradient_at_attention(pooling, gradients_at_embedding(pool.embedding(pooling), texts))


class RolloutConfig(ExplainerConfig):
    """Attention rollout."""

    kind: Literal["rollout"] = "rollout"


class Rollout(Walker[RolloutConfig]):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): the origin of the class token's attention.

    For block b with attention weights A_b (mean over heads, rows sum to 1):

        M_b = (I + A_b) / 2
        H = row of the class token in M_B ... M_2 M_1, over the patches

    The maps of all phrases are the same. Deviation from the paper: none.
    """

    config_type = RolloutConfig
    cost = "forward"

    @torch.no_grad()
    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        row = _first_row(tensors)
        for attention in reversed(tensors.attention):
            row = (row + row @ attention.mean(dim=1)) / 2
        return row[..., 1:].expand(-1, texts.shape[1], -1)


def _first_row(tensors: BlockTensors) -> Tensor:
    """Return the first row of the identity (1, 1, T)."""
    row = torch.zeros_like(tensors.attention[0][:, 0, :1])
    row[..., 0] = 1
    return row


FLOW_UNIT: Final = 2**24
"""The integer that stands for a capacity of 1: `scipy` computes flows of 32-bit integers alone."""


class AttentionFlowConfig(ExplainerConfig):
    """Attention flow."""

    kind: Literal["attention_flow"] = "attention_flow"


class AttentionFlow(Walker[AttentionFlowConfig]):
    """Attention flow (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): what a patch can send to the class token.

    Every token before and behind every block is a node. With M_b as in `Rollout`, an edge goes
    from token i behind block b to token j before it, with the capacity M_b[i, j]:

        H_j = maximum flow from the class token behind the last block to patch j before the first

    Rollout multiplies along a path and sums over the paths; here a path carries what its
    narrowest edge holds, and the edges that paths share are counted once. The maps of all
    phrases are the same.

    In networks of several blocks the edges at the patch itself are usually the narrowest place. With A_1
    as the attention of the first block the map is then

        H_j = min(1, (1 + sum over i of A_1[i, j]) / 2)

    Half of the patches of `demo` reach 1, and the others show which patches the first block looks
    at. Nothing of that depends on what the class token sees, so such maps find few objects.

    Deviations: capacities are rounded to 1 / `FLOW_UNIT`. The paper divides the flows of a token
    by their sum, which changes no map but for its scale.

    The cost is one maximum flow for each patch, on a graph with T^2 edges for each block, and
    all on one processor: 2 s for an image of a ViT-B/16 at 224 px, and 9 s for the six blocks and
    400 patches of `demo`, 200 times its encoding.
    """

    config_type = AttentionFlowConfig
    cost = "perturbation"

    @torch.no_grad()
    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        if not texts.any():
            return texts.new_zeros(1, texts.shape[1], tensors.tokens[0].shape[1] - 1)
        flows = flows_to_patches(
            [attention[0].mean(dim=0).double().cpu().numpy() for attention in tensors.attention]
        )
        return torch.from_numpy(flows).to(texts).expand(1, texts.shape[1], -1)


def flows_to_patches(attention: Sequence[Floats]) -> Floats:
    """Attention (T, T) of each block, the mean over heads -> maximum flow from the class token to each patch (N,).

    Flows are NaN where a weight is not finite.
    """
    tokens = len(attention[0])
    if not all(np.isfinite(weights).all() for weights in attention):  # no integer stands for it
        return np.full(tokens - 1, np.nan)
    source = len(attention) * tokens  # the class token behind the last block; others behind it lead nowhere
    parts = []
    for number, weights in enumerate(attention):
        capacities = np.rint((np.eye(tokens) + weights) * (FLOW_UNIT / 2)).astype(np.int32)
        rows, columns = capacities[: 1 if number == len(attention) - 1 else tokens].nonzero()
        parts.append((rows + (number + 1) * tokens, columns + number * tokens, capacities[rows, columns]))
    starts, ends, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    graph = csr_array((values, (starts, ends)), shape=(source + 1, source + 1))
    flows = [maximum_flow(graph, source, patch).flow_value for patch in range(1, tokens)]
    return np.array(flows) / FLOW_UNIT


class GameConfig(ExplainerConfig):
    """GAME: attention times its gradient, rolled out over the blocks."""

    kind: Literal["game"] = "game"


class Game(Walker[GameConfig]):
    """GAME, the generic attention explainer (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679).

    For each block with attention A (T x T for each head) and the score f, the cosine of image
    and text times the model's logit scale s:

        A' = mean over heads of ReLU(df/dA * A)           number by number
        R <- R + A' R                                     from R = I, first block to last
        H  = row of the class token in R, over the patches

    Only the class token's row is wanted, so the products go from the last block to the first
    with one row instead of a matrix: r <- r + r A' from the unit row of the class token.

    Deviations: none of the formula. With several blocks the factor s sets how much paths
    through more than one of them count, because R grows by products of gradients. The authors'
    notebook for CLIP explains the last block alone, which is `AttentionGradient`; over all
    blocks of a ViT-B/16 the maps are known to have hot patches that stand for nothing. The
    paper's rules for attention between two kinds of tokens do not apply to a CLIP, whose towers
    do not see each other.
    """

    config_type = GameConfig

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        return _relevance(tensors, texts, self.model.logit_scale)


def _relevance(tensors: BlockTensors, texts: Tensor, scale: float) -> Tensor:
    """Return the class token's row of GAME's R for each phrase, over the patches (1, P, N)."""
    rows = []
    for gradients in phrase_gradients(tensors.embedding, tensors.attention, texts, scale):
        row = _first_row(tensors)
        for weights, gradient in zip(reversed(tensors.attention), reversed(gradients), strict=True):
            row = row + row @ (gradient * weights.detach()).relu().mean(dim=1)
        rows.append(row[..., 1:])
    return torch.cat(rows, dim=1)


class AttentionGradientConfig(ExplainerConfig):
    """Attention times its gradient, at the last attention."""

    kind: Literal["attention_gradient"] = "attention_gradient"


class AttentionGradient(AttentionExplainer[AttentionGradientConfig]):
    """Attention times its gradient, at the last attention: the form that arXiv 2605.12952 reduces Grad-ECLIP to.

    c is the cosine of image and text embedding. a^h_i is the weight of patch i in head h, in
    the class token's row of the last block or in the pool's one row:

        H_i = mean over heads of ReLU(dc/da^h_i * a^h_i)

    This is GAME (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679) on the last block alone, as in
    the authors' notebook for CLIP, without the constant factor of the logit scale. Grad-ECLIP
    (arXiv 2502.18816) on one block with the network's own heads puts the min-max normalised
    cosine of query and key where this method has the attention itself, and the ReLU on the sum
    of the heads. "Debunking Grad-ECLIP" (Cui and Fan, arXiv 2605.12952) rests on this likeness.

    Deviations: none from GAME's form. Where one attention pools the tokens, gradients have a
    closed form.
    """

    config_type = AttentionGradientConfig
    count = 1

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        return _relevance(tensors, texts, 1.0)

    def _explain_pool(self, pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
        return (_pool_gradients(pool, pooling, texts) * pooling.attention[:, :, None]).relu().mean(dim=1)


class LeGradConfig(ExplainerConfig):
    """LeGrad: gradients at the attention of the last blocks."""

    kind: Literal["legrad"] = "legrad"


class LeGrad(AttentionExplainer[LeGradConfig]):
    """LeGrad (Bousselham et al., ICCV 2025, arXiv 2404.03214): gradients at the attention of several blocks, summed.

    For each of the last two blocks l, with its attention A_l (T x T for each head) and the
    tokens x_l that leave it:

        s_l = cos(proj(ln_post(mean of x_l over all tokens)), text embedding)
        H_i = sum over l of the mean over heads and rows of ReLU(ds_l / dA_l) in column i

    The score of a block is made of its own tokens, so that its gradient passes through this
    block alone. Unlike GAME the gradient is not multiplied by the attention, and every token's
    row counts. The number of blocks is that of the authors' code.

    Where one attention pools the tokens, the score is the cosine of the pool's output for a
    block's tokens. The gradient is that at the pool's own attention, which has one row, the
    query's. The authors' code has this for SigLIP, with a correction: a patch gets no heat if
    its map for the words "a photo of a" is above 0.8 after a min-max. Such pools look at some
    patches whatever the words are.

    Deviations: no min-max at the end, because maps are not normalised here. A pool may stand
    behind any trunk, so only the trunk's last tokens are explained. That is the authors' form
    with one layer; they sum two by default. `templates` apply to "a photo of a", too.
    """

    config_type = LeGradConfig
    count = 2

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        values = torch.zeros(())
        for attention, tokens in zip(tensors.attention, tensors.tokens[1:], strict=True):
            with torch.enable_grad():
                embedding = self.walk.tower.head(tokens.mean(dim=1))
            gradients = phrase_gradients(embedding, [attention], texts)
            columns = [gradient.relu().mean(dim=(1, 2)) for (gradient,) in gradients]
            values = values + torch.stack(columns, dim=1)[..., 1:]
        return values

    def _explain_pool(self, pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
        empty = self.texts([EMPTY])[None].expand(len(texts), -1, -1)
        heat = _pool_gradients(pool, pooling, torch.cat([empty, texts], dim=1)).relu().mean(dim=1)
        is_normal = min_max(heat[:, 0]) <= EMPTY_THRESHOLD
        return heat[:, 1:] * is_normal[:, None]
