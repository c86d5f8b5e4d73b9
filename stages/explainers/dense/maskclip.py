"""MaskCLIP (Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071): what each patch alone would mean.

With y_i the embedding of patch i, see `stages.shared.model.towers.dense`,

    H_i = cos(y_i, text embedding) - min over the patches

In a transformer with a class token the last block's residual and its MLP do not follow; with `residual: true` they do,
as in the authors' code for ViTs.

Deviations: towers that average their tokens, which the paper does not have; the cosine less its least value, because
heat is not negative, where the paper compares the cosines of classes; neither key smoothing nor prompt denoising. The
map says where an image looks like the phrase, not why the model's cosine is what it is. There is no gradient: the cost
is the trunk, and the head on all patches.

Shapes: B images, P phrases, N patches, D width, E embedding.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, closest_patch, cosines_of
from stages.explain.config import ExplainerConfig
from stages.shared.model.towers.dense import dense


class MaskClipConfig(ExplainerConfig):
    """MaskCLIP: cosine of each patch's own embedding and the phrase."""

    kind: Literal["maskclip"] = "maskclip"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    residual: bool = False
    """With a class token: whether the last block's residual and MLP follow the values (the authors), or neither does
    (CLIP Surgery, ClearCLIP). On drawn scenes the peak lies on the thing in .713 of cases without and in .503 with them
    (configs/README.md). Without effect on other towers."""


class MaskClip(Explainer[MaskClipConfig]):
    """Each patch's own embedding, compared with the phrase. `similarity` is the cosine of image and phrase."""

    config_type = MaskClipConfig
    towers = ("class_token", "attention_pool", "latent_pool", "average_pool")
    needs = "tokens that stand for places"
    cost = "forward"

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        seen = dense(self.model.tower, rgb, residual=self.config.residual, block=self.affinity.block)
        patches = seen.patches
        unit = F.normalize(patches, dim=-1)
        values = []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            cosines = part @ unit.mT
            values.append(cosines - cosines.amin(dim=-1, keepdim=True))
        constant = (patches == patches[:, :1]).all(dim=-1).all(dim=-1)
        local = closest_patch(patches, texts, self.config.phrases_per_step) if self.looks_closer else None
        similarity = cosines_of(seen.embedding, texts)
        return Maps(torch.cat(values, dim=1), similarity, constant, seen.tokens, seen.embedding, local)
