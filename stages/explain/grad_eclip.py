"""Grad-ECLIP for any phrase on towers whose embedding is made by attention.

Source: Zhao et al., "Gradient-based Visual Explanation for Transformer-based CLIP", ICML 2024,
and its journal version arXiv 2502.18816; the formula below is what their code evaluates.

One explained block has tokens x (class token 0, patches 1..N), z = ln_1(x) and [q, k, v] = z
W_in + b_in. The class row has attention weights a, and o = sum_j a_j v_j is its output before
the output projection:

    c   = cos(image embedding, text embedding)
    w   = dc / do                                     one weight per channel
    s_i = cos(q'_0, k'_i)                             q', k' raw, or after the output projection
    l_i = (s_i - min s) / (max s - min s)             over the patches
    H_i = ReLU(l_i * sum_d w_d v_i,d)

c is not scaled by the logit scale. Equivalently sum_d w_d v_i,d = dc / da_i summed over heads,
which is why this map is an attention-gradient map (arXiv 2605.12952 says so too).

Where one attention pools the tokens of a trunk (CLIP's ResNets, SigLIP) the formula is the
same, with the pool as the only block and its query as q_0. The rest of the tower behind o is a
function of one vector per image. So w has a closed form: for a ResNet w = W_c' (t - c e/|e|) /
|e| with the output projection W_c, and no gradient runs through the trunk. The paper announces the
method for CNN backbones, too, without saying how; this is our reading.

Deviations, and the setting that restores the paper (`variant: authors` restores all of them):
- the network's heads instead of one head over the full width (`heads: single`);
- s_i from q' and k' without the output projection (`similarity: projected`);
- neighbouring tokens that are alike share their heat (`affinity: none`);
- with `blocks`, several blocks, summed after a ReLU on each;
- with several blocks, gradients through the class token only: the patch tokens' keys and values
  are held at the values of the one forward pass. For the last block that is exact;
- the model's square input instead of keeping the aspect ratio (`image_size: keep`);
- texts in lower case and without leading articles: with `variant: authors` the command `explain`
  and `Locator` embed them as typed, while a run always embeds the phrases that it cuts;
- where a min-max would divide zero by zero the map is zero and says why in `HeatMap.fault`.

Shapes: B images, P phrases, H heads, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.explain.base import ATTENDING, Explainer
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.maps import (
    PHRASES_PER_STEP,
    Maps,
    compute_by_step,
    gradients_at_embedding,
    min_max,
)
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.device import allow_tf32
from phrasebox.stages.model.towers.layers import Layer
from phrasebox.stages.model.towers.pooled import PooledTower, by_tower
from phrasebox.stages.model.towers.vision import Block, VisionTower, attend, join_heads, split_heads


class GradEclip(Explainer[GradEclipConfig]):
    """Grad-ECLIP with one trunk forward per image, whatever the number of phrases.

    Raises ConfigError for more blocks than the model has.
    """

    config_type = GradEclipConfig
    towers = ATTENDING
    needs = "an attention that makes the embedding"

    def __init__(self, config: GradEclipConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self._heads = 1 if config.heads == "single" else None
        self._compute: Callable[[Tensor], Maps] = by_tower(
            model.tower,
            blocks=self._for_blocks,
            pooled=lambda tower: lambda rgb: self._explain_pool(tower, rgb),
        )

    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return self._compute(rgb)

    @torch.no_grad()
    def _explain_pool(self, tower: PooledTower, rgb: Tensor) -> Maps:
        pool = tower.pool
        pooling = tower.pool_tokens(rgb, self._heads)
        similarity = self._patch_similarity(pool.out, pooling.query, pooling.keys)
        embedding = pool.embedding(pooling)

        def heat_of_step(texts: Tensor) -> Tensor:
            gradients = pool.gradient_at_output(pooling, gradients_at_embedding(embedding, texts))
            return (gradients @ pooling.values.mT * similarity[:, None]).relu()

        return Maps(
            heat=partial(compute_by_step, compute=heat_of_step),
            embedding=embedding,
            constant=similarity.amax(dim=1) == 0,
            tokens=pooling.tokens,
            embed_patches=lambda: pool.embedding_of_each(pooling),
        )

    def _for_blocks(self, tower: VisionTower) -> Callable[[Tensor], Maps]:
        config = self.config
        layers = len(tower.blocks)
        affinity_block = self.early_block
        if config.blocks > layers:
            raise ConfigError(
                f"{self.model.name} has {layers} blocks, not {config.blocks}", key="explain.blocks"
            )
        if affinity_block is not None and affinity_block > layers - config.blocks:
            raise ConfigError(
                f"{config.affinity_depth:g} is block {affinity_block + 1} of {layers} in "
                f"{self.model.name}, and the last {config.blocks} are explained: "
                f"{(layers - config.blocks + 1) / layers:.2f} at most",
                key="explain.affinity_depth",
            )
        # Gradients of a unit vector's cosine are too small for 16 bits, so these compute in
        # float32. "Exact" is the arithmetic: where the trunk has 16 bits, their weights are the
        # trunk's rounded ones.
        exact = tuple(block.float() for block in tower.blocks[-config.blocks :])
        return partial(self._explain_blocks, tower, exact)

    def _explain_blocks(self, tower: VisionTower, exact: Sequence[Block], rgb: Tensor) -> Maps:
        with torch.no_grad():
            x, early = tower.tokens_before(rgb, len(tower.blocks) - len(exact), self.early_block)
            token = x[:, 0].float()
            keys_values = []
            for block, exact_block in zip(tower.blocks[-len(exact) :], exact, strict=True):
                q, k, v = block.project(x)
                keys_values.append((k[:, 1:].float(), v[:, 1:].float()))
                if exact_block is not exact[-1]:
                    x = block.finish(x, attend(q, k, v, self._heads or block.heads))
        path = trace_class_token(tower, token, exact, keys_values, self._heads)
        registers = tower.prefix_tokens - 1
        similarities = [
            self._patch_similarity(block.out, query, keys[:, registers:])
            for block, query, (keys, _) in zip(exact, path.queries, keys_values, strict=True)
        ]

        def heat_of_step(texts: Tensor) -> Tensor:
            signed = path.attention_gradients(gradients_at_embedding(path.embedding, texts))
            blocks = [
                (s * similarity[:, None]).relu() for s, similarity in zip(signed, similarities, strict=True)
            ]
            return torch.stack(blocks).sum(dim=0)

        return Maps(
            heat=partial(compute_by_step, compute=heat_of_step),
            embedding=path.embedding,
            constant=torch.stack([similarity.amax(dim=1) == 0 for similarity in similarities]).all(dim=0),
            tokens=None if early is None else early[:, tower.prefix_tokens :],
            embed_patches=lambda: tower.head(exact[-1].attended(keys_values[-1][1][:, registers:])),
        )

    @torch.no_grad()
    def _patch_similarity(self, out: Layer, query: Tensor, keys: Tensor) -> Tensor:
        """l of the module's formula: query (B, D), keys (B, N, D) -> (B, N) in 0 .. 1."""
        if self.config.similarity == "projected":
            query = out(query)
            keys = out(keys)
        return min_max(F.cosine_similarity(query[:, None], keys, dim=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPath:
    """The class token's path through the explained blocks, with gradients at its attention.

    Attributes:
        embedding: Embeddings of the images (B, E), not normalised, without a graph.
        queries: The class token's queries in each block (B, D), without a graph.
        attention_gradients: Gradients dc/de of the phrases (B, P, E) -> sum_d w_d v_i,d of each
            block (B, P, N), w = dc/do.
    """

    embedding: Tensor
    queries: Sequence[Tensor]
    attention_gradients: Callable[[Tensor], Sequence[Tensor]]


def trace_class_token(
    tower: VisionTower,
    token: Tensor,
    blocks: Sequence[Block],
    keys_values: Sequence[tuple[Tensor, Tensor]],
    heads: int | None,
) -> ClassPath:
    """Send the class token (B, D) through the last blocks of a tower, whose head is in float32.

    Keys and values of all other tokens (B, T - 1, D) in each block, the patches last, are
    constants here, so a gradient touches one token per image, phrase and block instead of T. Each of P =
    `PHRASES_PER_STEP` phrases has a copy of the class token, which keeps gradients apart. All
    phrases of an image share keys and values. The output o of a block is linear in its
    attention weights a, so that sum_d w_d v_i,d is dc/da_i, summed over heads. `heads`: None is
    each block's own number.
    """
    queries = []
    attention = []
    with torch.enable_grad(), allow_tf32(tower.device, tower.dtype):
        x = token[:, None].expand(-1, PHRASES_PER_STEP, -1).requires_grad_()
        for block, constants in zip(blocks, keys_values, strict=True):
            projected = block.project(x)
            query, class_key, class_value, keys, values = (
                split_heads(t, heads or block.heads) for t in (*projected, *constants)
            )
            to_self = (query * class_key).sum(dim=-1, keepdim=True)
            logits = torch.cat([to_self, query @ keys.mT], dim=-1) * query.shape[-1] ** -0.5
            class_weight, other_weights = logits.softmax(dim=-1).split([1, keys.shape[-2]], dim=-1)
            o = class_weight * class_value + other_weights @ values
            x = block.finish(x, join_heads(o))
            queries.append(projected[0][:, 0].detach())
            attention.append(other_weights)
        embeddings = tower.head(x)

    def attention_gradients(gradient: Tensor) -> Sequence[Tensor]:
        with allow_tf32(tower.device, tower.dtype):
            gradients = torch.autograd.grad(embeddings, attention, gradient, retain_graph=True)
        return [block.sum(dim=1)[..., tower.prefix_tokens - 1 :] for block in gradients]

    return ClassPath(
        embedding=embeddings[:, 0].detach(), queries=queries, attention_gradients=attention_gradients
    )
