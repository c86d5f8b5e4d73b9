"""Explainers that read the gradient of the cosine at the attention.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens, E embedding.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.config import Count, ExplainerConfig
from stages.explain.maps import gradients_at_embedding
from stages.explainers.attention.walk import AttentionExplainer, BlockTensors, Walker, phrase_gradients
from stages.shared.model.clip import ClipModel, TextCache
from stages.shared.model.towers.pooled import AttentionPool, Pooling

EMPTY: Final = "a photo of a"
"""Words that name nothing: their map shows where a pool looks whatever the phrase is."""

EMPTY_THRESHOLD: Final = 0.8
"""Share of the highest heat of `EMPTY` above which a patch gets no heat; the authors' value."""


class AttentionGradientConfig(ExplainerConfig):
    """Attention times its gradient, at the last attention."""

    kind: Literal["attention_gradient"] = "attention_gradient"


class AttentionGradient(AttentionExplainer[AttentionGradientConfig]):
    """Attention times its gradient, at the last attention: the form that arXiv 2605.12952 reduces Grad-ECLIP to.

    c is the cosine of image and text embedding. a^h_i is the weight of patch i in head h, in
    the class token's row of the last block or in the pool's one row:

        H_i = mean over heads of ReLU(dc/da^h_i * a^h_i)

    This is GAME (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679) on the last block alone, as in
    the authors' notebook for CLIP, without the constant factor of the logit scale; `Game` is
    the method over all blocks. Grad-ECLIP (arXiv 2502.18816) on one block with the network's
    own heads puts the min-max normalised cosine of query and key where this method has the
    attention itself, and the ReLU on the sum of the heads. "Debunking Grad-ECLIP" (Cui and Fan,
    arXiv 2605.12952) rests on this likeness.

    Deviations: none from GAME's form. Where one attention pools the tokens, gradients have a
    closed form.
    """

    config_type = AttentionGradientConfig

    def __init__(self, config: AttentionGradientConfig, model: ClipModel) -> None:
        super().__init__(config, model, blocks=1)

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        (attention,) = tensors.attention
        attention_gradients = phrase_gradients(tensors.embedding, [attention], texts)
        gradients = torch.stack([gradient[:, :, 0, 1:] for (gradient,) in attention_gradients], dim=2)
        return _heat(gradients, attention[:, :, :1, 1:].detach())

    def _explain_pool(self, pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
        return _heat(_pool_gradients(pool, pooling, texts), pooling.attention[:, :, None])


def _heat(gradients: Tensor, attention: Tensor) -> Tensor:
    """Gradients (B, H, P, N) and attention (B, H, 1, N) -> maps (B, P, N)."""
    return (gradients * attention).relu().mean(dim=1)


def _pool_gradients(pool: AttentionPool, pooling: Pooling, texts: Tensor) -> Tensor:
    """Return dc/da (B, H, P, N) of a pool for unit texts (B, P, E)."""
    return pool.back_to_attention(pooling, gradients_at_embedding(pool.embedding(pooling), texts))


class GameConfig(ExplainerConfig):
    """GAME: attention times its gradient, rolled out over the blocks."""

    kind: Literal["game"] = "game"
    blocks: Literal["all"] | Count = Field(
        "all",
        description="Explained blocks, the last ones: `all` in the paper, 1 in the authors' notebook for CLIP.",
    )


class Game(Walker[GameConfig]):
    """GAME, the generic attention explainer (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679).

    For each block with attention A (T x T for each head) and the score f, the cosine of image
    and text times the model's logit scale s:

        A' = mean over heads of ReLU(df/dA * A)           number by number
        R <- R + A' R                                     from R = I, first block to last
        H  = row of the class token in R, over the patches

    Only the class token's row is wanted, so the products go from the last block to the first
    with one row instead of a matrix: r <- r + r A' from the unit row of the class token.

    Deviations: none of the formula at the defaults. The factor s does not change the order of
    the patches where one block is explained; with several it sets how much paths through more
    than one of them count, because R grows by products of gradients. The authors' notebook for
    CLIP explains the last block alone (`blocks: 1`); over all blocks of a ViT-B/16 the maps are
    known to have hot patches that stand for nothing. The paper's rules for attention between
    two kinds of tokens do not apply to a CLIP, whose towers do not see each other.

    Raises ConfigError for more blocks than the model has.
    """

    config_type = GameConfig

    def __init__(self, config: GameConfig, model: ClipModel) -> None:
        super().__init__(config, model, config.blocks)

    def _explain_blocks(self, tensors: BlockTensors, texts: Tensor) -> Tensor:
        gradients = phrase_gradients(tensors.embedding, tensors.attention, texts, self.model.logit_scale)
        rows = [_class_row(tensors.attention, phrase_gradient) for phrase_gradient in gradients]
        return torch.stack(rows, dim=1)


@torch.no_grad()
def _class_row(attention: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """Attention and its gradients, (1, H, T, T) for each block in order -> the class token's row of R, (1, N)."""
    row = torch.zeros_like(attention[0][:, 0, :1])
    row[..., 0] = 1
    for weights, gradient in zip(reversed(attention), reversed(gradients), strict=True):
        row = row + row @ (gradient * weights).relu().mean(dim=1)
    return row[:, 0, 1:]


class LeGradConfig(ExplainerConfig):
    """LeGrad: gradients at the attention of the last blocks."""

    kind: Literal["legrad"] = "legrad"
    blocks: Literal["all"] | Count = Field(
        2,
        description="How many of the last blocks are explained; 2 in the authors' code. Without "
        "effect where one attention pools the tokens.",
    )


class LeGrad(AttentionExplainer[LeGradConfig]):
    """LeGrad (Bousselham et al., ICCV 2025, arXiv 2404.03214): gradients at the attention of several blocks, summed.

    For each of the last blocks l, with its attention A_l (T x T for each head) and the tokens
    x_l that leave it:

        s_l = cos(proj(ln_post(mean of x_l over all tokens)), text embedding)
        H_i = sum over l of the mean over heads and rows of ReLU(ds_l / dA_l) in column i

    The score of a block is made of its own tokens, so that its gradient passes through this
    block alone. Unlike GAME the gradient is not multiplied by the attention, and every token's
    row counts.

    Where one attention pools the tokens, the score is the cosine of the pool's output for a
    block's tokens. The gradient is that at the pool's own attention, which has one row, the
    query's. The authors' code has this for SigLIP, with a correction: a patch gets no heat if
    its map for the words "a photo of a" is above 0.8 after a min-max. Such pools look at some
    patches whatever the words are.

    Deviations: no min-max at the end, because maps are not normalised here. A pool may stand
    behind any trunk, so only the trunk's last tokens are explained. That is the authors' form
    with one layer; they sum two by default. Raises ConfigError for more blocks than the model
    has.
    """

    config_type = LeGradConfig

    def __init__(self, config: LeGradConfig, model: ClipModel) -> None:
        super().__init__(config, model, config.blocks)
        self.empty = TextCache(model)

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
        empty = self.empty([EMPTY])[None].expand(len(texts), -1, -1)
        heat = _pool_gradients(pool, pooling, torch.cat([empty, texts], dim=1)).relu().mean(dim=1)
        empty_heat = heat[:, :1]
        low = empty_heat.amin(dim=-1, keepdim=True)
        high = empty_heat.amax(dim=-1, keepdim=True)
        is_normal = empty_heat - low <= EMPTY_THRESHOLD * (high - low)
        return heat[:, 1:] * is_normal
