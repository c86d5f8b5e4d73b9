"""Contrastive relevance propagation (Gu, Yang, Tresp, ACCV 2018, arXiv 1812.02100), for phrases.

With the relevance R_k of the phrase and R_n of the other texts (`contrastive.py`), K of them:

    H_k = ReLU(R_k - 1/K sum_n s_n R_n)

which is the paper's first dual, all other classes with equal shares of the target's total: `totals: equal`. Its second
dual, the target with the last layer's weights negated, gives the same relevance as the target under rules that are
linear in the weights, so it does not exist here.

Deviations: the other phrases of the image and `background` take the place of the other classes, because CLIP has none;
`totals: own` instead of the paper's `equal`; the rules are those of `rules.py`, and not the z+ rule. A map depends on
the other phrases of its image, and on no other image.

Layer-wise relevance propagation is claimed to be patented, and free of charge for personal and scientific purposes only
(the README of LXT); see `Explainer.claim`. No default uses it.

The cost is that of `lrp`, with the texts of `background` as further phrases.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stages.explainers.relevance.contrastive import ContrastiveConfig, ContrastiveExplainer


class ClrpConfig(ContrastiveConfig):
    """Contrastive relevance propagation."""

    kind: Literal["clrp"] = "clrp"


class Clrp(ContrastiveExplainer[ClrpConfig]):
    """The relevance of a phrase less the mean relevance of the other texts."""

    config_type = ClrpConfig

    def shares(self, cosines: Tensor) -> Tensor:
        """See `ContrastiveExplainer.shares`: equal ones."""
        return torch.full_like(cosines, 1 / len(cosines))
