"""GAME, the generic attention explainer (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679).

For each block with attention A (T x T for each head) and the score f = s cos(image embedding, text embedding):

    A' = mean over heads of ReLU(df/dA * A)           number by number
    R <- R + A' R                                     from R = I, first block to last
    H  = row of the class token in R, over the patches

Only the class token's row is wanted, so the products go from the last block to the first with one row instead of a
matrix: r <- r + r A' from the unit row of the class token.

Deviations: none of the formula at the defaults. The factor s does not change the order of the patches where one block
is explained; with several it sets how much paths through more than one of them count, because R grows by products of
gradients. The authors differentiate CLIP's scaled logit, whose factor is 100 after training. Their notebook for CLIP
explains the last block alone (`blocks: 1`), which is `attention_gradient`; over all blocks of a ViT-B/16 the maps are
known to have hot patches that stand for nothing. The paper's rules for attention between two kinds of tokens have
nothing to act on in a CLIP, whose towers do not see each other.

Cost: a forward pass, and for each phrase a backward pass through the explained blocks.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps
from stages.explain.config import ExplainerConfig
from stages.explainers.attention.walk import Walk, gradients_at, image_by_image, starts_of
from stages.shared.model.clip import ClipModel


class GameConfig(ExplainerConfig):
    """GAME: attention times its gradient, rolled out over the blocks."""

    kind: Literal["game"] = "game"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    blocks: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """How many of the last blocks are explained: `all` in the paper, 1 in the authors' notebook for CLIP."""

    scale: Annotated[float, Field(gt=0.0)] = 100.0
    """s, what the cosine is multiplied by before it is differentiated; CLIP's logit scale is 100 after training."""


class Game(Explainer[GameConfig]):
    """Relevance of the patches for the class token. `similarity` is the cosine of image and phrase.

    Raises ConfigError for more blocks than the model has.
    """

    config_type = GameConfig
    towers = ("class_token",)
    needs = "transformer blocks with a class token"
    cost = "backward"

    def __init__(self, config: GameConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self.walk = Walk(model, self.config.blocks, self.affinity.block)

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return image_by_image(self._of_image, rgb, texts)

    def _of_image(self, rgb: Tensor, texts: Tensor) -> Maps:
        walked = self.walk(rgb)
        starts, cosines = starts_of(walked.embedding, texts, self.config.phrases_per_step)
        heat = [
            class_row(walked.attention, gradients)
            for gradients in gradients_at(walked.embedding, walked.attention, self.config.scale * starts)
        ]
        return Maps(torch.stack(heat, dim=1), cosines, None, walked.early, walked.embedding.detach())


@torch.no_grad()
def class_row(attention: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """Attention and its gradients, (1, H, T, T) for each block in order -> the class token's row of R, (1, N)."""
    row = torch.zeros_like(attention[0][:, 0, :1])
    row[..., 0] = 1
    for weights, gradient in zip(reversed(attention), reversed(gradients), strict=True):
        row = row + row @ (gradient * weights).relu().mean(dim=1)
    return row[:, 0, 1:]
