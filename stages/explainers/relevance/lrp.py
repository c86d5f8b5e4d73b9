"""Layer-wise relevance propagation with the rules for attention, from the cosine back to the patches.

Sources: AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602), the default; with `rule: conservative` and `activation:
gradient` the propagation of Ali et al. (ICML 2022, arXiv 2202.07304). The rules and their formulas stand in `rules.py`,
where relevance starts and ends in `propagation.py`.

    H_i = ReLU(R_i)                        what speaks for the phrase

Deviations from AttnLRP: relevance starts at the cosine, with the norm of the embedding held, instead of a class's
logit; the map has the relevance of whole patches, for which the rule of the first convolution makes no difference;
gamma is 0 for all layers, where the paper searches for one on vision transformers (`gamma`). LXT's example for CLIP is
`rule: conservative` with a gamma. Deviation from Ali et al.: none at the settings named above.

On 60 drawn scenes (131 phrases, the embedded model) pointing is .82 with `attnlrp`, .81 with `conservative`, .79 as Ali
et al. have it, and .83 with Grad-ECLIP, each give or take .07; a gamma of .25 raises box recall from .64 to .71.

Layer-wise relevance propagation is claimed to be patented, and free of charge for personal and scientific purposes only
(the README of LXT); see `Explainer.claim`. No default uses it.

The cost is a backward pass through the whole tower for each phrase; on towers without a class token through the pool
and what is behind it. Shapes: see `propagation.py`."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stages.explain.base import Explainer, Maps
from stages.explainers.attention.walk import image_by_image
from stages.explainers.relevance.config import CLAIM, RelevanceConfig
from stages.explainers.relevance.propagation import Propagation
from stages.shared.model.clip import ClipModel


class LrpConfig(RelevanceConfig):
    """Layer-wise relevance propagation."""

    kind: Literal["lrp"] = "lrp"


class Lrp(Explainer[LrpConfig]):
    """Relevance of each patch for the cosine of image and phrase, which is `similarity`."""

    config_type = LrpConfig
    towers = ("class_token", "attention_pool", "latent_pool", "average_pool")
    needs = "tokens that stand for places"
    cost = "backward"
    claim = CLAIM

    def __init__(self, config: LrpConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self.propagation = Propagation(self.config, model.tower, self.affinity.block)

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return image_by_image(self._of_one, rgb, texts)

    def _of_one(self, rgb: Tensor, texts: Tensor) -> Maps:
        found = self.propagation(rgb, texts)
        return Maps(found.signed.relu(), found.cosines, None, found.tokens, found.embedding)
