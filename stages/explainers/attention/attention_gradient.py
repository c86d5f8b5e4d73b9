"""Attention times its gradient, at the last attention: the form that arXiv 2605.12952 reduces Grad-ECLIP to.

With a^h_i the weight of patch i in head h, in the class token's row of the last block or in the pool's one row, and c
the cosine of image and text embedding:

    H_i = mean over heads of ReLU(dc/da^h_i * a^h_i)

This is GAME (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679) on the last block alone, as the authors' notebook for CLIP
has it, but for the constant factor of the logit scale; `attention.game` is the method over all blocks.

How it relates to Grad-ECLIP (arXiv 2502.18816): the output of attention is linear in the weights, so that Grad-ECLIP's
channel-weighted value sum_d w_d v_i,d is the gradient dc/da_i summed over heads. `weight: none` with `rectify: sum`
is therefore Grad-ECLIP on one block with the network's own heads and no spatial weight, divided by the number of heads;
Grad-ECLIP puts the min-max normalised cosine of query and key where this method has the attention itself. "Debunking
Grad-ECLIP" (Cui and Fan, arXiv 2605.12952) rests on this equality.

Deviations: none from GAME's form. Cost: a forward pass, and for each phrase a backward pass through the last block;
where one attention pools the tokens, products in closed form.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosine_gradients
from stages.explain.config import ExplainerConfig
from stages.explainers.attention.walk import Walk, gradients_at, image_by_image, starts_of
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.pooled import PooledTower


class AttentionGradientConfig(ExplainerConfig):
    """Attention times its gradient, at the last attention."""

    kind: Literal["attention_gradient"] = "attention_gradient"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    weight: Literal["attention", "none"] = "attention"
    """What the gradient is multiplied by: the `attention` itself, or nothing."""

    rectify: Literal["head", "sum"] = "head"
    """ReLU in each head, before they are averaged (GAME), or on their mean (Grad-ECLIP)."""


class AttentionGradient(Explainer[AttentionGradientConfig]):
    """The gradient of the cosine at the last attention, times that attention. `similarity` is the cosine."""

    config_type = AttentionGradientConfig
    towers = ("class_token", "attention_pool", "latent_pool")
    needs = "an attention that makes the embedding"
    cost = "backward"

    def __init__(self, config: AttentionGradientConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        self.pooled = tower.float_head() if isinstance(tower, PooledTower) else None
        self.walk = None if isinstance(tower, PooledTower) else Walk(model, 1, self.affinity.block)

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        if self.pooled is None:
            return image_by_image(self._of_block, rgb, texts)
        return self._of_pool(self.pooled, rgb, texts)

    @torch.no_grad()
    def _of_pool(self, tower: PooledTower, rgb: Tensor, texts: Tensor) -> Maps:
        seen = tower.look(rgb)
        embedding = tower.pool.embedding(seen)
        values, cosines = [], []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            starts, cosine = cosine_gradients(embedding, part)
            values.append(self._heat(tower.pool.back_to_attention(seen, starts), seen.attention[:, :, None]))
            cosines.append(cosine)
        return Maps(torch.cat(values, dim=1), torch.cat(cosines, dim=1), None, seen.tokens, embedding)

    def _of_block(self, rgb: Tensor, texts: Tensor) -> Maps:
        assert self.walk is not None  # noqa: S101
        walked = self.walk(rgb)
        (attention,) = walked.attention
        starts, cosines = starts_of(walked.embedding, texts, self.config.phrases_per_step)
        gradients = [gradient[:, :, 0, 1:] for (gradient,) in gradients_at(walked.embedding, [attention], starts)]
        values = self._heat(torch.stack(gradients, dim=2), attention[:, :, :1, 1:].detach())
        return Maps(values, cosines, None, walked.early, walked.embedding.detach())

    def _heat(self, gradients: Tensor, attention: Tensor) -> Tensor:
        """Gradients (B, H, P, N) and attention (B, H, 1, N) -> maps (B, P, N)."""
        each = gradients * attention if self.config.weight == "attention" else gradients
        return each.relu().mean(dim=1) if self.config.rectify == "head" else each.mean(dim=1).relu()
