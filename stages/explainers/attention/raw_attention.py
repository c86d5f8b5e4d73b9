"""Raw attention: what the token that becomes the embedding looks at in the last attention.

With a^h_i the weight of patch i in head h, in the class token's row of the last block or in the pool's one row:

    H_i = mean over heads of a^h_i

This is the baseline that papers on explaining transformers start from, such as Abnar and Zuidema (ACL 2020, arXiv
2005.00928), and that DINO (Caron et al., ICCV 2021, arXiv 2104.14294) showed for vision transformers. There is nothing
that it deviates from. The map does not depend on the phrase: all phrases of an image get the same one, and `contrast`
is 0, because it compares the maps of phrases.

Cost: the trunk, and the attention of one row.

Shapes: B images, P phrases, H heads, N patches, D width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosines_of
from stages.explain.config import ExplainerConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.vision import VisionTower, split_heads


class RawAttentionConfig(ExplainerConfig):
    """The weights of the last attention."""

    kind: Literal["raw_attention"] = "raw_attention"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class RawAttention(Explainer[RawAttentionConfig]):
    """The last attention, averaged over its heads. `similarity` is the cosine of image and phrase."""

    config_type = RawAttentionConfig
    towers = ("class_token", "attention_pool", "latent_pool")
    needs = "an attention that makes the embedding"
    cost = "forward"
    follows_phrases = False

    def __init__(self, config: RawAttentionConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        assert isinstance(tower, VisionTower | PooledTower)  # noqa: S101
        self.tower: VisionTower | PooledTower = tower.float_head()
        self.last = tower.blocks[-1].float() if isinstance(tower, VisionTower) else None

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        attention, embedding, tokens = self._asked(rgb)
        values = attention.mean(dim=1, keepdim=True).expand(-1, texts.shape[1], -1)
        return Maps(values, cosines_of(embedding, texts), None, tokens, embedding)

    def _asked(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights of the patches (B, H, N), embeddings (B, E) in any scale, and `Maps.tokens`."""
        tower = self.tower
        if isinstance(tower, PooledTower):
            seen = tower.look(rgb)
            return seen.attention, tower.pool.embedding(seen), seen.tokens
        assert self.last is not None  # noqa: S101
        x, early = tower.tokens_before(rgb, len(tower.blocks) - 1, self.affinity.block)
        x = x.float()
        q, k, v = (split_heads(part, self.last.heads) for part in self.last.project(x))
        attention = (q[:, :, :1] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        token = self.last.finish(x[:, :1], (attention @ v).transpose(1, 2).flatten(2))[:, 0]
        return attention[:, :, 0, 1:], tower.head(token), None if early is None else early[:, 1:]
