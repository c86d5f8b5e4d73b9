"""Transformer interpretability beyond attention visualization (Chefer, Gur, Wolf, CVPR 2021, arXiv 2012.09838).

For every block b with attention A_b, the gradient of the score s at it, and its relevance R_b (`positive.py`):

    C_b = I + mean over heads of ReLU(ds/dA_b · R_b)
    H   = row of the class token in C_B ... C_2 C_1, over the patches

s is the cosine times `logit_scale`. Relevance starts with 1 for the phrase, which is shared out among the channels of
the image's embedding e by what adds to the cosine, (e_d t_d)+.

Deviations from the paper: rows of C_b are divided by their sum, as the authors' evaluation code does it and the paper
does not (`rows: plain`); all blocks are multiplied, where that evaluation leaves the first one out (`first_block: 1`);
the paper has no CLIP, so that the cosine takes the place of a class's logit; sums over the batch, see `positive.py`.

Layer-wise relevance propagation is claimed to be patented, and free of charge for personal and scientific purposes only
(the README of LXT); see `Explainer.claim`. No default uses it.

The cost for each phrase is a backward pass through the whole tower, and relevance through it: twice the products of a
backward pass. Shapes: B images (1 here), P phrases, H heads, N patches, T = N + 1 tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.explain.base import Explainer, Maps
from stages.explain.config import ExplainerConfig
from stages.explainers.attention.walk import Walk, gradients_at, image_by_image, starts_of
from stages.explainers.relevance.config import CLAIM
from stages.explainers.relevance.positive import AddingLinear, BlockRelevance, share
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.layers import Linear


class TransformerInterpretabilityConfig(ExplainerConfig):
    """Relevance of attention times its gradient, multiplied through the blocks."""

    kind: Literal["transformer_interpretability"] = "transformer_interpretability"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    rows: Literal["unit", "plain"] = "unit"
    """Whether the rows of each C are divided by their sum (`unit`, the authors' evaluation code) or not (the paper)."""

    first_block: Annotated[int, Field(ge=0)] = 0
    """Number of the first block that is multiplied, from 0. The authors' evaluation leaves the first one out: 1."""

    logit_scale: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0
    """What the cosine is multiplied by before it is differentiated; CLIP's own models end at 100. It decides how much
    the products of blocks count beside their sum."""


class TransformerInterpretability(Explainer[TransformerInterpretabilityConfig]):
    """Relevance of each attention times its gradient, rolled out. `similarity` is the cosine of image and phrase.

    Raises ConfigError for a `first_block` that the model does not have.
    """

    config_type = TransformerInterpretabilityConfig
    towers = ("class_token",)
    needs = "transformer blocks with a class token"
    cost = "backward"
    claim = CLAIM

    def __init__(self, config: TransformerInterpretabilityConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self.walk = Walk(model, "all", self.affinity.block)
        if config.first_block >= len(self.walk.blocks):
            raise ConfigError(
                f"explain.first_block: {model.name} has {len(self.walk.blocks)} blocks, so that the last one is "
                f"{len(self.walk.blocks) - 1}, not {config.first_block}"
            )

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return image_by_image(self._of_one, rgb, texts)

    def _of_one(self, rgb: Tensor, texts: Tensor) -> Maps:
        walked, first = self.walk(rgb), self.config.first_block
        embedding = walked.embedding.detach()
        starts, cosines = starts_of(embedding, texts, self.config.phrases_per_step)
        passed = zip(self.walk.blocks, walked.inputs, walked.attention, strict=True)
        blocks = [BlockRelevance.of(block, x.detach(), a.detach()) for block, x, a in passed]
        class_token = walked.outputs[-1][:, 0].detach()
        slopes = gradients_at(walked.embedding, walked.attention[first:], self.config.logit_scale * starts)
        heat = []
        for text, gradients in zip(texts[0], slopes, strict=True):
            if not text.any():  # A row that only fills up.
                heat.append(torch.zeros_like(walked.outputs[-1][:, 1:, 0]))
                continue
            relevance = torch.zeros_like(walked.outputs[-1])
            relevance[:, 0] = self._at_class_token(class_token, embedding, text)
            heat.append(self._rolled(blocks[first:], gradients, relevance))
        return Maps(torch.stack(heat, dim=1), cosines, None, walked.early, embedding)

    def _rolled(self, blocks: Sequence[BlockRelevance], gradients: Sequence[Tensor], relevance: Tensor) -> Tensor:
        """Relevance (1, T, D) behind the last block -> H (1, N)."""
        row: Tensor | None = None
        for block, gradient in zip(reversed(blocks), reversed(gradients), strict=True):
            relevance, at_attention = block(relevance)
            step = self._mixed((gradient * at_attention).relu().mean(dim=1))
            row = step[:, :1] if row is None else row @ step
        assert row is not None, "a transformer has blocks"  # noqa: S101
        return row[:, 0, 1:]

    def _at_class_token(self, token: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        """Class token behind the last block (1, D), embedding (1, E), text (E,) -> relevance (1, D), in total 1."""
        tower = self.walk.tower
        adding = (embedding * text).relu()
        relevance = share(adding, adding.sum())
        if tower.output is None:
            return relevance
        return AddingLinear.of(Linear(tower.output.T, None), tower.ln_post(token))(relevance)

    def _mixed(self, mean: Tensor) -> Tensor:
        """(1, T, T) -> with the residual path."""
        mixed = mean + torch.eye(mean.shape[-1], device=mean.device)
        return mixed / mixed.sum(dim=-1, keepdim=True) if self.config.rows == "unit" else mixed
