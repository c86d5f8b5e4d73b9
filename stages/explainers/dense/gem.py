"""GEM, grounding everything (Bousselham, Petersen, Ferrari, Kuehne, CVPR 2024, arXiv 2312.00878): self-self attention.

On the second path (`dense.second_path`) of the last blocks the values v are mixed by three attentions,
each of a kind of vectors among themselves, for p the queries, the keys and the values of a head:

    p  <- p / |p|
    p  <- softmax(t p p') p, p / |p|                  `iterations` times
    A' = mean over the three of softmax(t p p')       t = (mean of |z| over the tokens) / sqrt(d)
    H_i = cos(y_i, text embedding) - min over the patches

with z the tokens after `ln_1`. Tokens that are alike gather; the scale t is the paper's, which keeps it independent of
the model.

Deviations: the cosine less its least value, because heat is not negative, where the authors apply a min-max. They ask
for "a photo of a {}.", which `templates` restores. A model with fewer blocks has the second path in all of them.

The map says where an image looks like the phrase, not why the model's cosine is what it is. Cost: the trunk, three more
attentions for each of the blocks, and the head on all patches.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens, D width, d = D / H, E embedding.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosines_of
from stages.explain.config import ExplainerConfig
from stages.explainers.dense.second_path import Looked, SecondPath
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.vision import VisionTower


class GemConfig(ExplainerConfig):
    """GEM: cosine of the phrase and each patch after self-self attention."""

    kind: Literal["gem"] = "gem"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    blocks: Annotated[int, Field(ge=1)] = 6
    """How many of the last blocks have the second path, at most; 6 in the authors' code."""

    iterations: Annotated[int, Field(ge=0, le=8)] = 1
    """How often queries, keys and values are mixed among themselves before they mix the values; 1 in the authors'
    code."""


class Gem(Explainer[GemConfig]):
    """Patches that gather with those that are like them, compared with the phrase. `similarity` is the cosine."""

    config_type = GemConfig
    towers = ("class_token",)
    needs = "transformer blocks with a class token"
    cost = "forward"

    def __init__(self, config: GemConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        assert isinstance(model.tower, VisionTower)  # noqa: S101
        self.path = SecondPath(model.tower, self.config.blocks, self.affinity.block, self._mixed)

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        dense = self.path(rgb)
        unit = F.normalize(dense.patches, dim=-1)
        values = []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            cosines = part @ unit.mT
            values.append(cosines - cosines.amin(dim=-1, keepdim=True))
        constant = (dense.patches == dense.patches[:, :1]).all(dim=-1).all(dim=-1)
        embedding = dense.embedding
        return Maps(torch.cat(values, dim=1), cosines_of(embedding, texts), constant, dense.tokens, embedding)

    def _mixed(self, looked: Looked) -> Tensor:
        """See `second_path.Mixing`."""
        sharpness = looked.normed.norm(dim=-1).mean(dim=-1)[:, None, None, None] * looked.v.shape[-1] ** -0.5
        answers = []
        for vectors in (looked.v, looked.k, looked.q):
            unit = F.normalize(vectors, dim=-1)
            for _ in range(self.config.iterations):
                unit = F.normalize(F.scaled_dot_product_attention(sharpness * unit, unit, unit, scale=1.0), dim=-1)
            answers.append(F.scaled_dot_product_attention(sharpness * unit, unit, looked.v, scale=1.0))
        return torch.stack(answers).mean(dim=0)
