"""Grad-ECLIP for any phrase on towers whose embedding is made by attention.

Source: Zhao et al., "Gradient-based Visual Explanation for Transformer-based CLIP", ICML 2024,
and its journal version arXiv 2502.18816; the formula below is what their code evaluates.

One explained block has tokens x (class token 0, patches 1..N), z = ln_1(x) and [q, k, v] = z
W_in + b_in. The class row has attention weights a, and o = sum_j a_j v_j is its output before
the output projection:

    c   = cos(image embedding, text embedding)
    w   = dc / do                                     one weight per channel, see `class_path.py`
    s_i = cos(q'_0, k'_i)                             q', k' raw, or after the output projection
    l_i = (s_i - min s) / (max s - min s)             over the patches
    H_i = ReLU(l_i * sum_d w_d v_i,d)

c is not scaled by the logit scale. Equivalently sum_d w_d v_i,d = dc / da_i summed over heads,
which is why this map is an attention-gradient map (arXiv 2605.12952 says so too).

Where one attention pools the tokens of a trunk (CLIP's ResNets, SigLIP) the formula is the
same, with the pool as the only block and its query as q_0. The rest of the tower behind o is a
function of one vector per image. So w has a closed form: for a ResNet w = W_c' (t - c e/|e|) /
|e| with the output projection W_c, and no backward pass is needed. The paper announces the
method for CNN backbones, too, without saying how; this is our reading.

Deviations, and the setting that restores the paper (`variant: authors` restores all of them):
- the network's own heads instead of one head over the full width (`heads: single`);
- with `blocks`, several blocks, summed after a ReLU on each;
- gradients through the class token only (`path: full`). The patch tokens' keys and values are
  held at the values of the one forward pass; exact for the last block (`trace_class_token`);
- the model's square input instead of keeping the aspect ratio (`image_size: keep`);
- where a min-max would divide zero by zero the map is zero and says why in `HeatMap.fault`.

Shapes: B images, P phrases, H heads, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.explain.base import ATTENDING, Explainer
from stages.explain.class_path import BlockInputs, ExplainedBlocks, trace_class_token
from stages.explain.config import GradEclipConfig
from stages.explain.maps import Maps, compute_by_step, gradients_at_embedding, min_max
from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.layers import Layer
from stages.shared.model.towers.pooled import PooledTower, by_tower
from stages.shared.model.towers.vision import Block, VisionTower, attend


class GradEclip(Explainer[GradEclipConfig]):
    """Grad-ECLIP with one trunk forward per image, whatever the number of phrases.

    Raises ConfigError for more blocks than the model has.
    """

    config_type = GradEclipConfig
    towers = ATTENDING
    needs = "an attention that makes the embedding"

    def __init__(self, config: GradEclipConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        self._compute: Callable[[Tensor], Maps] = by_tower(
            model.tower,
            blocks=self._for_blocks,
            pooled=self._for_pool,
        )

    def maps(self, rgb: Tensor) -> Maps:
        """See `Explainer.maps`."""
        return self._compute(rgb)

    def _for_pool(self, tower: PooledTower) -> Callable[[Tensor], Maps]:
        return partial(self._explain_pool, tower)

    @torch.no_grad()
    def _explain_pool(self, tower: PooledTower, rgb: Tensor) -> Maps:
        pool = tower.pool
        look = tower.look(rgb, 1 if self.config.heads == "single" else None)
        weight = self._spatial_weight(pool.out, look.query, look.keys)
        embedding = pool.embedding(look)

        def heat_of_step(texts: Tensor) -> Tensor:
            gradients = pool.back(look, gradients_at_embedding(embedding, texts))
            return _sum_blocks([gradients @ look.values.mT], [weight])

        return Maps(
            heat=partial(compute_by_step, step=self.config.phrases_per_step, compute=heat_of_step),
            embedding=embedding,
            constant=weight.amax(dim=1) == 0,
            tokens=look.tokens,
            embed_patches=lambda: pool.embedding_of_each(look),
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
        follow = self._follow_all_tokens if self.config.path == "full" else self._follow_class_token
        explained = follow(tower, exact, x)
        weights = [
            self._spatial_weight(block.out, query, keys)
            for block, query, keys in zip(exact, explained.queries, explained.keys, strict=True)
        ]

        def heat_of_step(texts: Tensor) -> Tensor:
            return _sum_blocks(
                explained.attention_gradients(gradients_at_embedding(explained.embedding, texts)), weights
            )

        return Maps(
            heat=partial(compute_by_step, step=self.config.phrases_per_step, compute=heat_of_step),
            embedding=explained.embedding,
            constant=torch.stack([weight.amax(dim=1) == 0 for weight in weights]).all(dim=0),
            tokens=None if early is None else early[:, 1:],
            embed_patches=partial(_embed_patches, tower, exact[-1], explained.values[-1]),
        )

    def _follow_class_token(self, tower: VisionTower, exact: Sequence[Block], x: Tensor) -> ExplainedBlocks:
        """Explain the last blocks with gradients through the class token only; x (B, T, D) are the tokens before."""
        inputs = []
        token = x[:, 0].float()
        with torch.no_grad():
            for block, exact_block in zip(tower.blocks[-len(exact) :], exact, strict=True):
                q, k, v = block.project(x)
                keys = k[:, 1:].float()
                values = v[:, 1:].float()
                inputs.append(
                    BlockInputs(block=exact_block, heads=self._heads(block), keys=keys, values=values)
                )
                if exact_block is not exact[-1]:
                    x = block.finish(x, attend(q, k, v, self._heads(block)))
        return trace_class_token(tower, token, inputs, self.config.phrases_per_step)

    def _follow_all_tokens(self, tower: VisionTower, exact: Sequence[Block], x: Tensor) -> ExplainedBlocks:
        """Explain the last blocks by autograd through all tokens; the last one computes only its class row."""
        outputs = []
        queries = []
        keys = []
        values = []
        x = x.float().requires_grad_()
        for block in exact:
            q, k, v = block.project(x)
            if block is exact[-1]:
                q = q[:, :1]
                x = x[:, :1]
            outputs.append(attend(q, k, v, self._heads(block)))
            x = block.finish(x, outputs[-1])
            queries.append(q[:, 0].detach())
            keys.append(k[:, 1:].detach())
            values.append(v[:, 1:].detach())
        embedding = tower.head(x[:, 0])

        def attention_gradients(gradients: Tensor) -> Sequence[Tensor]:
            phrases = [
                torch.autograd.grad(embedding, outputs, gradient, retain_graph=True)
                for gradient in gradients.unbind(1)
            ]
            rows = (
                torch.stack([gradient[:, 0] for gradient in block], dim=1)
                for block in zip(*phrases, strict=True)
            )
            return [row @ v.mT for row, v in zip(rows, values, strict=True)]

        return ExplainedBlocks(
            embedding=embedding.detach(),
            queries=queries,
            keys=keys,
            values=values,
            attention_gradients=attention_gradients,
        )

    def _heads(self, block: Block) -> int:
        return 1 if self.config.heads == "single" else block.heads

    @torch.no_grad()
    def _spatial_weight(self, out: Layer, query: Tensor, keys: Tensor) -> Tensor:
        """l of the module's formula: query (B, D), keys (B, N, D) -> (B, N) in 0 .. 1."""
        if self.config.similarity == "projected":
            query = out(query)
            keys = out(keys)
        return min_max(F.cosine_similarity(query[:, None], keys, dim=-1))


def _sum_blocks(signed: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Signed maps (B, P, N) of the blocks and their spatial weights (B, N) -> one map (B, P, N), >= 0."""
    return torch.stack(
        [(s * weight[:, None]).relu() for s, weight in zip(signed, weights, strict=True)]
    ).sum(dim=0)


def _embed_patches(tower: VisionTower, last: Block, values: Tensor) -> Tensor:
    """Values of the patches in the last block (B, N, D) -> embeddings of single patches (B, N, E)."""
    patches = last.out(values)
    return tower.head(patches if last.ls_1 is None else patches * last.ls_1)
