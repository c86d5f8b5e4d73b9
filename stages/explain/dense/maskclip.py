"""MaskCLIP (Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071): what each patch alone would mean.

Where attention makes the embedding, its values hold what each patch adds. A patch's own embedding is what comes out
when the attention looks at that patch alone, so that its output is the patch's value:

    y_i = the rest of the tower, with v_i in place of sum_j a_j v_j
    H_i = cos(y_i, text embedding) - min over the patches

In a transformer with a class token this replaces the last attention of the patches by their values. The block's
residual and its MLP do not follow, as in CLIP Surgery (arXiv 2304.05653) and ClearCLIP; with `residual: true` they do,
as in the authors' code for ViTs. Where one attention pools the tokens it is the authors' form for CLIP's ResNets, but
with the tokens' positions. Where tokens are averaged it is the head on each token; the paper has no such towers.

Deviations: the cosine less its least value, because heat is not negative, where the paper compares the cosines of
classes; neither key smoothing nor prompt denoising. The map says where an image looks like the phrase, not why the
model's cosine is what it is. There is no gradient: the cost is the trunk, and the head on all patches.

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
from stages.model.clip import ClipModel
from stages.model.towers.averaged import AveragedTower
from stages.model.towers.pooled import PooledTower
from stages.model.towers.vision import Block, VisionTower, attend


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

    def __init__(self, config: MaskClipConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        assert isinstance(tower, VisionTower | PooledTower | AveragedTower)  # noqa: S101
        self.tower: VisionTower | PooledTower | AveragedTower = tower.float_head()
        self.last = tower.blocks[-1].float() if isinstance(tower, VisionTower) else None

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        dense, embedding, tokens = self._dense(rgb)
        unit = F.normalize(dense, dim=-1)
        values = []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            cosines = part @ unit.mT
            values.append(cosines - cosines.amin(dim=-1, keepdim=True))
        constant = (dense == dense[:, :1]).all(dim=-1).all(dim=-1)
        local = closest_patch(dense, texts, self.config.phrases_per_step) if self.looks_closer else None
        return Maps(torch.cat(values, dim=1), cosines_of(embedding, texts), constant, tokens, embedding, local)

    def _dense(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings of the patches (B, N, E) and of the images (B, E), float32, in any scale; and `Maps.tokens`."""
        tower = self.tower
        if isinstance(tower, PooledTower):
            seen = tower.look(rgb)
            return tower.pool.embedding_of_each(seen), tower.pool.embedding(seen), seen.tokens
        if isinstance(tower, AveragedTower):
            tokens = tower.embed(rgb).float()
            return tower.finish(tokens), tower.finish(tokens.mean(dim=1)), tokens
        assert self.last is not None  # noqa: S101
        tokens, early = tower.tokens_before(rgb, len(tower.blocks) - 1, self.affinity.block)
        token, patches = _by_values(self.last, tokens.float(), residual=self.config.residual)
        return tower.head(patches), tower.head(token), None if early is None else early[:, 1:]


def _by_values(last: Block, x: Tensor, *, residual: bool) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, D) before the last block -> class token (B, D), and the patches by their values alone (B, N, D)."""
    q, k, v = last.project(x)
    token = last.finish(x[:, :1], attend(q[:, :1], k, v, last.heads))[:, 0]
    if residual:
        return token, last.finish(x[:, 1:], v[:, 1:])
    patches = last.out(v[:, 1:])
    return token, patches if last.ls_1 is None else patches * last.ls_1
