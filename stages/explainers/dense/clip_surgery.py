"""CLIP Surgery (Li et al., 2025, arXiv 2304.05653): values attend to values, and what all texts share is taken away.

Published in Pattern Recognition. Architecture surgery: on the second path (`dense.second_path`) of the
last blocks the values v of each head are mixed by their own likeness, and the MLPs have no part in it:

    A' = softmax(v v' / sqrt(d))                      e_i: unit embedding of patch i on the second path,
                                                      e_0: of the image by the path as ever

Feature surgery, with the unit text embedding t of the phrase. Without `background`, as the authors do it for one text:

    H_i = e_i . (t - t_empty)                         t_empty: the embedding of an empty phrase

With `background`, their form for a set of texts C, which is here the phrase and these texts:

    w_c = p_c / mean p, p = softmax over C of 2 e_0 . t_c
    H_i = w_t e_i . t - mean over c in C of w_c e_i . t_c

In both the map is H less its least value, because heat is not negative, where the authors apply a min-max.

Deviations: the authors' set of texts is all that is asked for an image, so that a phrase's map depends on which others
are asked for with it; here the set is fixed, and a map is the phrase's own. Their demonstration asks for the names of
59 classes, each in a set of prompts (`templates: openai_imagenet`), through which the empty phrase goes, too. A model
with fewer blocks has the second path in all of them. Where one attention pools the tokens, the values of the patches
attend to each other there; the authors, who have this for CLIP's ResNets, let them also attend to the mean token.

The map says where an image looks like the phrase, not why the model's cosine is what it is. Cost: the trunk, one more
attention for each of the blocks, and the head on all patches.

Shapes: B images, P phrases, C background texts, H heads, N patches, T = N + 1 tokens, D width, d = D / H, E embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.explain.base import Explainer, Maps, cosines_of
from stages.explain.config import ExplainerConfig
from stages.explainers.dense.second_path import Dense, Looked, SecondPath
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.vision import VisionTower, attend

SHARPNESS: Final = 2.0
"""What cosines are multiplied by before the softmax over texts; the authors' value."""


class ClipSurgeryConfig(ExplainerConfig):
    """CLIP Surgery: values attend to values, and what all texts share is taken away."""

    kind: Literal["clip_surgery"] = "clip_surgery"
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    blocks: Annotated[int, Field(ge=1)] = 6
    """How many of the last blocks have the second path, at most; 6 in the authors' code. Without effect where one
    attention pools the tokens."""

    background: tuple[str, ...] = ()
    """Texts that are asked for beside each phrase, and whose common part is taken away from it, such as names of many
    classes. Without any, the empty phrase is taken away."""


class ClipSurgery(Explainer[ClipSurgeryConfig]):
    """Patches whose values attend to values, compared with the phrase alone. `similarity` is the cosine."""

    config_type = ClipSurgeryConfig
    towers = ("class_token", "attention_pool", "latent_pool")
    needs = "an attention that makes the embedding"
    cost = "forward"

    def __init__(self, config: ClipSurgeryConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        tower = model.tower
        self.pooled = tower.float_head() if isinstance(tower, PooledTower) else None
        self.path: SecondPath | None = None
        if isinstance(tower, VisionTower):
            self.path = SecondPath(tower, self.config.blocks, self.affinity.block, _by_values)

    @torch.no_grad()
    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        dense = self._dense(rgb)
        patches, whole = (F.normalize(part, dim=-1) for part in (dense.patches, dense.embedding))
        others = self.texts(self.config.background or [""])
        values = []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            if self.config.background:
                heat = without_shared(patches, whole, part, others)
            else:
                heat = (part - others) @ patches.mT
            values.append(heat - heat.amin(dim=-1, keepdim=True))
        constant = (dense.patches == dense.patches[:, :1]).all(dim=-1).all(dim=-1)
        embedding = dense.embedding
        return Maps(torch.cat(values, dim=1), cosines_of(embedding, texts), constant, dense.tokens, embedding)

    def _dense(self, rgb: Tensor) -> Dense:
        if self.pooled is None:
            assert self.path is not None  # noqa: S101
            return self.path(rgb)
        seen = self.pooled.look(rgb)
        mixed = attend(seen.values, seen.values, seen.values, seen.attention.shape[1])
        pool = self.pooled.pool
        patches = pool.embedding_of_each(replace(seen, values=mixed))
        return Dense(patches=patches, embedding=pool.embedding(seen), tokens=seen.tokens)


def without_shared(patches: Tensor, whole: Tensor, texts: Tensor, others: Tensor) -> Tensor:
    """Feature surgery with a set of texts.

    Args:
        patches: (B, N, E), unit embeddings.
        whole: (B, E), unit embeddings of the images.
        texts: (B, P, E), unit embeddings of the phrases.
        others: (C, E), unit embeddings of the background texts.

    Returns:
        (B, P, N), of any sign.
    """
    with_others = (whole @ others.T)[:, None].expand(-1, texts.shape[1], -1)
    cosines = torch.cat([torch.einsum("be,bpe->bp", whole, texts)[..., None], with_others], dim=-1)
    weights = (SHARPNESS * cosines).softmax(dim=-1) * cosines.shape[-1]
    own = weights[..., :1] * (texts @ patches.mT)
    shared = own + weights[..., 1:] @ (others @ patches.mT)
    return own - shared / cosines.shape[-1]


def _by_values(looked: Looked) -> Tensor:
    """See `second_path.Mixing`."""
    return F.scaled_dot_product_attention(looked.v, looked.v, looked.v)
