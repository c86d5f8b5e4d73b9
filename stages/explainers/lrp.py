"""Layer-wise relevance propagation with the rules for attention, from the cosine back to the patches.

Relevance of places by the rules of `lrp_rules`:

    c    = sum_d e_d t_d / |e|             the norm of the image's embedding e is held
    R_i  = sum_d x_i,d dc / dx_i,d         x_i the vector that stands for place i, the gradient by the rules

On a transformer with a class token x_i is the embedding of patch i before the position is
added, and the whole network is gone through. The projection of the patch is linear, so R_i is
also the sum of its pixels' relevance, by whichever rule of the linear layers. On other towers
the trunk is not gone through: x_i are the tokens that the attention pools, or the tokens that
are averaged.

R is linear in the text embedding t: the relevance of a difference of texts is the difference of
their relevances. The contrastive explainers subtract from the relevance of a phrase that of
other texts. Among the phrases k of an image and the texts of `BACKGROUND`, with the relevance
R_k of each:

    D_k = R_k - sum over n != k of p_n R_n          H_k = ReLU(D_k)

They differ in the shares p, which sum to one. A map then depends on the other phrases of its
image, and on no other image. In the papers the relevance of every other text is scaled to the
total of the phrase's first; here it is not, so that the difference of the cosines is explained.

Layer-wise relevance propagation is claimed to be patented, see `CLAIM`. No default uses it.

Shapes: B images (1 here), P phrases, K texts, N patches, D width, E embedding.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from phrasebox.stages.explain.base import ConfigT
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.maps import Maps, cosines_of
from phrasebox.stages.explainers.lrp_rules import (
    CLAIM,
    attend_by_rules,
    chain_by_rules,
    pool_by_rules,
    tower_by_rules,
)
from phrasebox.stages.explainers.walk import SingleImageExplainer, Trace, gradients_at, trace_tokens
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.layers import NOTHING
from phrasebox.stages.model.towers.pooled import by_tower
from phrasebox.stages.model.towers.tower import Tower
from phrasebox.stages.model.towers.vision import VisionTower


class Propagation:
    """Computes the relevance of places for phrases on any tower; `early_block` is `Explainer.early_block`."""

    def __init__(self, tower: Tower, early_block: int | None) -> None:
        self.early_block = early_block
        self._grid_of = tower.grid_of
        self._forward: Callable[[Tensor], Trace] = by_tower(
            tower,
            blocks=lambda tower: partial(self._through_blocks, tower_by_rules(tower)),
            pooled=lambda tower: partial(trace_tokens, replace(tower, pool=pool_by_rules(tower.pool))),
            averaged=lambda tower: partial(
                trace_tokens, replace(tower, finish=chain_by_rules(tower.finish))
            ),
        )

    def __call__(self, rgb: Tensor) -> Maps:
        """One image, uint8 (1, height, width, 3) -> maps whose heat is relevance of either sign.

        Rows of zeros, which only fill up, have none and cost nothing.
        """
        with torch.enable_grad():
            trace = self._forward(rgb)
        embedding = trace.embedding.detach()
        cells = math.prod(self._grid_of(rgb))
        places = trace.features.detach()
        tokens = None if trace.tokens is None else trace.tokens[:, -cells:]

        def relevance(texts: Tensor) -> Tensor:
            starts = texts[0] / embedding.norm()
            gradients = gradients_at(trace.embedding, [trace.features], starts)
            signed = torch.stack([(gradient * places).sum(dim=-1) for (gradient,) in gradients], dim=1)
            return signed[..., -cells:]

        return Maps(heat=relevance, embedding=embedding, tokens=tokens)

    def _through_blocks(self, tower: VisionTower, rgb: Tensor) -> Trace:
        with torch.no_grad():
            raw = replace(tower, ln_pre=NOTHING).embed(rgb).float()
            positions = tower.positions(tower.grid_of(rgb)).float()[1:]
        first = tower.prefix_tokens
        places = (raw[:, first:] - positions).requires_grad_()
        x = tower.ln_pre(torch.cat([raw[:, :first], places + positions], dim=1))
        tokens: Tensor | None = None
        for number, block in enumerate(tower.blocks):
            tokens = x[:, first:].detach() if number == self.early_block else tokens
            q, k, v = block.project(x)
            x = block.finish(x, attend_by_rules(q, k, v, block.heads)[0])
        return Trace(places, tower.head(x[:, 0]), tokens)


class LrpConfig(ExplainerConfig):
    """Layer-wise relevance propagation."""

    kind: Literal["lrp"] = "lrp"


class Lrp(SingleImageExplainer[ConfigT]):
    """Relevance propagation by the rules of AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602).

    The map is the part that speaks for the phrase, H_i = ReLU(R_i). Deviations: relevance starts
    at the cosine, with the norm of the embedding held, instead of a class's logit; the map has
    the relevance of whole patches, for which the rule of the first convolution makes no
    difference; linear layers have the epsilon rule, where the paper searches for a gamma on
    vision transformers. No setting restores these.
    """

    config_type: ClassVar[type[ExplainerConfig]] = LrpConfig
    claim = CLAIM

    def __init__(self, config: ConfigT, model: ClipModel) -> None:
        super().__init__(config, model)
        self.propagation = Propagation(model.tower, self.early_block)

    def _maps_of_image(self, rgb: Tensor) -> Maps:
        relevance = self.propagation(rgb)
        return replace(relevance, heat=lambda texts: relevance.heat(texts).relu())


BACKGROUND: Final = [""]
"""Texts that are contrasted with beside the other phrases of the image, which may have one
phrase alone."""


class ContrastiveExplainer(Lrp[ConfigT]):
    """Subtracts the relevance of other texts, by shares of derived classes."""

    @abstractmethod
    def _shares(self, cosines: Tensor) -> Tensor:
        """Cosines (K,) of texts, K >= 1 -> the share of each text that is subtracted (K,), in total 1."""

    def _maps_of_image(self, rgb: Tensor) -> Maps:
        relevance = self.propagation(rgb)

        def heat(texts: Tensor) -> Tensor:
            phrases = texts.shape[1]
            texts = torch.cat([texts, self.texts(BACKGROUND)[None]], dim=1)
            signed = relevance.heat(texts)
            rows = texts[0].any(dim=-1)
            cosines = cosines_of(relevance.embedding, texts)[0, rows]
            values = torch.zeros_like(signed)
            values[0, rows] = self.contrast(signed[0, rows], cosines).relu()
            return values[:, :phrases]

        return replace(relevance, heat=heat)

    def contrast(self, signed: Tensor, cosines: Tensor) -> Tensor:
        """Return D of the module's formula (K, N), from relevance (K, N) and cosines (K,) of the texts of one image."""
        shares = signed.new_zeros(len(signed), len(signed))
        for number in range(len(signed)) if len(signed) > 1 else ():
            is_other = torch.arange(len(signed), device=signed.device) != number
            shares[number, is_other] = self._shares(cosines[is_other])
        return signed - shares @ signed


class ClrpConfig(ExplainerConfig):
    """Contrastive relevance propagation."""

    kind: Literal["clrp"] = "clrp"


class Clrp(ContrastiveExplainer[ClrpConfig]):
    """Contrastive relevance propagation (Gu, Yang, Tresp, ACCV 2018, arXiv 1812.02100), for phrases.

    With K other texts:

        H_k = ReLU(R_k - 1/K sum_n R_n)

    which is the paper's first dual, all other classes with equal shares, but for their totals.
    Its second dual, the target with the last layer's weights negated, does not exist here:
    under rules that are linear in the weights it gives the target's relevance.

    Deviations: the other phrases of the image and `BACKGROUND` take the place of the other
    classes, because CLIP has none; every text has its own total; the rules are those of
    `lrp_rules.py`, and not the z+ rule. No setting restores the paper, whose rule is not defined
    on an attention.
    """

    config_type = ClrpConfig

    def _shares(self, cosines: Tensor) -> Tensor:
        return torch.full_like(cosines, 1 / len(cosines))


class SgLrpConfig(ExplainerConfig):
    """Softmax-gradient relevance propagation."""

    kind: Literal["sg_lrp"] = "sg_lrp"


class SgLrp(ContrastiveExplainer[SgLrpConfig]):
    """Softmax-gradient relevance propagation (Iwana, Kuroki, Uchida, ICCV workshops 2019, arXiv 1908.04351).

    With probabilities y = softmax(logit_scale · c) over the texts, the paper starts relevance
    at the gradient of y_k: y_k (1 - y_k) at the phrase k and -y_k y_n at every other text n.
    With p the softmax over the other texts alone, y_n = (1 - y_k) p_n. The whole map then has
    the factor y_k (1 - y_k), which may be too small for a float and is left out:

        H_k = ReLU(R_k - sum_n p_n R_n)

    Deviations: as those of `Clrp`, and that factor, which no region depends on.
    """

    config_type = SgLrpConfig

    def _shares(self, cosines: Tensor) -> Tensor:
        return (self.model.logit_scale * cosines).softmax(dim=0)
