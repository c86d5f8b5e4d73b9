"""Softmax-gradient relevance propagation (Iwana, Kuroki, Uchida, ICCV workshops 2019, arXiv 1908.04351), for phrases.

With probabilities y = softmax(logit_scale · c) over the texts, the paper starts relevance at the gradient of y_k:
y_k (1 - y_k) at the phrase k and -y_k y_n at every other text n. With p the softmax over the others alone,
y_n = (1 - y_k) p_n, so that

    y_k (1 - y_k) r_k - sum_n y_k y_n r_n = y_k (1 - y_k) (r_k - sum_n p_n r_n)

with r the relevance of a text for a score of one, R / c. The factor before the bracket is the same for all patches and
is left out, because it may be too small for a float; the bracket times c_k is the map (`contrastive.py`):

    H_k = ReLU(R_k - sum_n p_n s_n R_n)

Deviations: the phrases of the image and `background` take the place of the classes, because CLIP has none; `totals:
own` instead of the paper's `equal`; the factors y_k (1 - y_k) and c_k, which no region depends on (a phrase whose
cosine is negative keeps what speaks for it); the rules are those of `rules.py`. A map depends on the other phrases of
its image, and on no other image.

Layer-wise relevance propagation is claimed to be patented, and free of charge for personal and scientific purposes only
(the README of LXT); see `Explainer.claim`. No default uses it.

The cost is that of `lrp`, with the texts of `background` as further phrases.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from stages.explainers.relevance.contrastive import ContrastiveConfig, ContrastiveExplainer


class SgLrpConfig(ContrastiveConfig):
    """Softmax-gradient relevance propagation."""

    kind: Literal["sg_lrp"] = "sg_lrp"

    logit_scale: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0
    """What cosines are multiplied by before the softmax; CLIP's own models end at 100."""


class SgLrp(ContrastiveExplainer[SgLrpConfig]):
    """The relevance of a phrase less that of the other texts, by how likely the model finds them."""

    config_type = SgLrpConfig

    def shares(self, cosines: Tensor) -> Tensor:
        """See `ContrastiveExplainer.shares`: a softmax."""
        return (self.config.logit_scale * cosines).softmax(dim=0)
