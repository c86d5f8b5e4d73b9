"""Explainers that compare each patch with the phrase, without a gradient.

Their maps show where an image looks like the phrase, and do not explain the model's cosine.
Heat is the cosine less its least value over the patches, because heat is not negative; the
papers apply a min-max or compare classes.

CLIP Surgery and GEM have a second path beside a transformer's last blocks, on which patches
keep their own meaning. The blocks compute as they always do. Beside them run copies of the
tokens, to which each block adds the answer that its attention would give if it mixed the values
otherwise; the MLPs have no part in it:

    x   <- the block, as ever                                    from which the mixing takes queries, keys and values
    x'  <- x' + ls_1((A' v) W_out + b_out)                       x' = x before the first of the blocks
    y_i = proj(ln_post(x'_i)), i = 1 .. N

with A' of the method.

Shapes: B images, P phrases, H heads, N patches, T = N + 1 tokens (the class token first), D width,
d = D / H, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.explain.base import ATTENDING, ConfigT, Explainer
from phrasebox.stages.explain.config import ExplainerConfig
from phrasebox.stages.explain.maps import Maps
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.dense import DenseFeatures, dense
from phrasebox.stages.model.towers.pooled import PooledTower, by_tower
from phrasebox.stages.model.towers.vision import VisionTower, join_heads, split_heads


class _Dense(Explainer[ConfigT]):
    """Compares the dense features of an image with phrases."""

    cost = "forward"

    def _maps_of(self, features: DenseFeatures) -> Maps:
        """Return maps of the products of the patches and a direction of each phrase (B, P, E)."""
        patches = features.patches

        def heat(directions: Tensor) -> Tensor:
            products = directions @ F.normalize(patches, dim=-1).mT
            return products - products.amin(dim=-1, keepdim=True)

        return Maps(
            heat=heat,
            constant=(patches == patches[:, :1]).all(dim=-1).all(dim=-1),
            tokens=features.tokens,
            embedding=features.embedding,
        )


class MaskClipConfig(ExplainerConfig):
    """MaskCLIP: cosine of the embedding of a single patch and the phrase."""

    kind: Literal["maskclip"] = "maskclip"


class MaskClip(_Dense[MaskClipConfig]):
    """MaskCLIP (Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071): the meaning of single patches.

    With y_i the embedding of patch i, see `phrasebox.stages.model.towers.dense`,

        H_i = cos(y_i, text embedding) - min over the patches

    Deviations: in a transformer with a class token the last block's residual and its MLP do not
    follow, as they do in the authors' code for ViTs: with them fewer peaks lie on the object.
    Towers that average their tokens, which the paper does not have; neither key smoothing nor
    prompt denoising. Grad-ECLIP's baseline of this name also weighs by the cosine of a patch's
    key and the class token's.
    """

    config_type = MaskClipConfig

    @torch.no_grad()
    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        features = dense(self.model.tower, rgb, block=self.early_block)
        return replace(self._maps_of(features), embed_patches=lambda: features.patches)


Mixing = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Tokens that an attention looks at (B, T, D), and its q, k and v (B, H, T, d), float32 -> A' v
(B, H, T, d)."""


DEPTH: Final = 0.5  # share of the blocks, the last ones, that have the second path: the authors' 6 of 12


def second_path(
    tower: VisionTower, early_block: int | None, mixing: Mixing
) -> Callable[[Tensor], DenseFeatures]:
    """Return the second path of a tower's last blocks: uint8 pixels (B, height, width, 3) -> features.

    `mixing` mixes the values on it. `DenseFeatures.tokens` are the patches before block
    `early_block`, from 0.
    """
    first = len(tower.blocks) - max(1, round(DEPTH * len(tower.blocks)))
    exact = tuple(block.float() for block in tower.blocks[first:])

    def features(rgb: Tensor) -> DenseFeatures:
        x, early = tower.tokens_before(rgb, first, early_block)
        x = second = x.float()
        for number, block in enumerate(exact, first):
            early = x if number == early_block else early
            z = block.ln_1(x)
            q, k, v = block.project_heads(z)
            second = second + block.attended(join_heads(mixing(z, q, k, v)))
            x = block.finish(x, join_heads(F.scaled_dot_product_attention(q, k, v)))
        patches = slice(tower.prefix_tokens, None)
        tokens = None if early is None else early[:, patches]
        return DenseFeatures(
            patches=tower.head(second[:, patches]), embedding=tower.head(x[:, 0]), tokens=tokens
        )

    return features


POOL_SHARPNESS: Final = 8.0  # Factor of the products of unit values in a pool; the authors' value


class ClipSurgeryConfig(ExplainerConfig):
    """CLIP Surgery: values attend to values, and what an empty phrase has is subtracted."""

    kind: Literal["clip_surgery"] = "clip_surgery"


class ClipSurgery(_Dense[ClipSurgeryConfig]):
    """CLIP Surgery (Li et al., Pattern Recognition 2025, arXiv 2304.05653): values attend to values.

    Architecture surgery: on the second path of the last blocks the values v of each head are
    mixed by their likeness:

        A' = softmax(v v' / sqrt(d))

    Where one attention pools the tokens, those that are pooled attend to each other there, in
    CLIP's ResNets their mean too, with

        A' = softmax(8 u u' / sqrt(d)), u = v / |v|

    Feature surgery, with the unit text embedding t, and e_i that of patch i on the second path,
    as the authors do it for one text:

        H_i = e_i . (t - t_empty)                         t_empty: the embedding of an empty phrase

    Deviations: the authors' form for a set of texts, in which a phrase's map depends on the
    other phrases, is left out. The empty phrase goes through `templates`, as theirs does. The
    authors have the form for pools for CLIP's ResNets alone.
    """

    config_type = ClipSurgeryConfig
    towers = ATTENDING
    needs = "an attention that makes the embedding"

    def __init__(self, config: ClipSurgeryConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self._dense: Callable[[Tensor], DenseFeatures] = by_tower(
            model.tower,
            blocks=lambda tower: second_path(tower, self.early_block, _attend_values),
            pooled=lambda tower: lambda rgb: _pool_values(tower, rgb),
        )

    @torch.no_grad()
    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        maps = self._maps_of(self._dense(rgb))
        return replace(maps, heat=lambda texts: maps.heat(texts - self.texts([""])))


def _attend_values(z: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(v, v, v)


def _pool_values(tower: PooledTower, rgb: Tensor) -> DenseFeatures:
    pool = tower.pool
    tokens = tower.embed(rgb).float()
    pooling = pool.pool_tokens(tokens, tower.grid_of(rgb))
    v = split_heads(pool.v(pool.norm(tokens)), pool.heads)
    unit = v / (v.norm(dim=-1, keepdim=True) + 1e-6)
    mixed = F.scaled_dot_product_attention(unit, unit, v, scale=POOL_SHARPNESS * v.shape[-1] ** -0.5)
    values = join_heads(mixed)[:, pool.prefix_tokens :]
    patches = pool.embedding_of_each(replace(pooling, values=values))
    return DenseFeatures(patches=patches, embedding=pool.embedding(pooling), tokens=pooling.tokens)


class GemConfig(ExplainerConfig):
    """GEM: cosine of the phrase and each patch after self-self attention."""

    kind: Literal["gem"] = "gem"


class Gem(_Dense[GemConfig]):
    """GEM, grounding everything (Bousselham, Petersen, Ferrari, Kuehne, CVPR 2024, arXiv 2312.00878).

    Self-self attention: on the second path of the last blocks three attentions mix the values
    v. In each the vectors p of a head attend to themselves, with p its queries, its keys or its
    values:

        p  <- p / |p|
        p  <- softmax(t p p') p, p / |p|
        A' = mean over the three of softmax(t p p')       t = (mean of |z| over the tokens) / sqrt(d)
        H_i = cos(y_i, text embedding) - min over the patches

    with z the tokens after `ln_1`. Tokens that are alike gather. |z| is near the root of the
    width where norms have weights near 1: in a ViT-B/16 that makes t 3.5 among 197 tokens.
    `demo` is a quarter as wide and has 401 tokens, so that t is 2.5 and the softmax nearly
    flat: the exponential of its entropy is 369 to 393 tokens.

    Deviation: the authors' prompt is "a photo of a {}.", which `templates` restores.
    """

    config_type = GemConfig
    towers = ("class_token",)
    needs = "transformer blocks with a class token"

    def __init__(self, config: GemConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self.path = by_tower(
            model.tower,
            blocks=lambda tower: second_path(tower, self.early_block, _attend_to_alike),
        )

    @torch.no_grad()
    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return self._maps_of(self.path(rgb))


def _attend_to_alike(z: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sharpness = z.norm(dim=-1).mean(dim=-1)[:, None, None, None] * v.shape[-1] ** -0.5

    def mix(vectors: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(sharpness * vectors, vectors, values, scale=1.0)

    units = [F.normalize(vectors, dim=-1) for vectors in (v, k, q)]
    return torch.stack([mix(F.normalize(mix(unit, unit), dim=-1), v) for unit in units]).mean(dim=0)
