"""Grad-ECLIP for any phrase on towers whose embedding is made by attention.

Source: Zhao et al., "Gradient-based Visual Explanation for Transformer-based CLIP", ICML 2024, and its
journal version arXiv 2502.18816; the formula below is what their code evaluates.

For one explained block with tokens x (class token 0, patches 1..N), z = ln_1(x), [q, k, v] = z W_in + b_in,
a the attention weights of the class row and o = sum_j a_j v_j its output before the output projection:

    c   = cos(image embedding, text embedding)
    w   = dc / do                                     one weight per channel
    s_i = cos(q'_0, k'_i)                             q', k' raw, or after the output projection
    l_i = (s_i - min s) / (max s - min s)             over the patches
    H_i = ReLU(l_i * sum_d w_d v_i,d)

c is not scaled by the logit scale. Equivalently sum_d w_d v_i,d = dc / da_i summed over heads, which is why
this map is an attention-gradient map (arXiv 2605.12952 says so too).

Where one attention pools the tokens of a trunk (CLIP's ResNets, SigLIP) the formula is the same, with the pool as the
only block and its query as q_0. What is behind o is a function of one vector per image, so that w has a closed form:
for a ResNet w = W_c' (t - c e/|e|) / |e| with the output projection W_c, and no backward pass is needed. The paper
announces the method for CNN backbones, too, without saying how; this is our reading.

Deviations, and the setting that restores the paper (`variant: authors` restores all of them):
- the network's own heads instead of one head over the full width (`heads: single`);
- several blocks, summed after a ReLU on each (`blocks: 1`; `rectify: sum` takes the ReLU after the sum);
- gradients through the class token only (`path: full`). The patch tokens' keys and values are held at the
  values of the one forward pass; exact for the last block;
- the model's square input instead of keeping the aspect ratio (`image_size: keep`);
- where a min-max would divide zero by zero the map is zero and says why in `HeatMap.fault`.

On the class token's path, keys and values of the patch tokens are constants, so a gradient touches one token per image,
phrase and block instead of N + 1. These gradients are written out by hand, because the phrases of an image share
everything but the gradient: as a further axis P of plain matrix products they cost next to nothing, while autograd's
batching copies keys and values for each phrase. The tests compare with autograd in float64.

Shapes: B images, P phrases, H heads, N patches, T tokens, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.explain.base import Explainer, Maps, closest_patch, cosine_gradients
from stages.explain.config import ExplainerConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import TOWER_WORDS, TowerKind
from stages.shared.model.towers.layers import Layer
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.text import TextTower
from stages.shared.model.towers.vision import Block, VisionTower, attend, split_heads

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "recommended": {},
    "authors": {
        "heads": "single",
        "similarity": "projected",
        "blocks": 1,
        "path": "full",
        "image_size": "keep",
        "shorter_side_px": 640,
        "contrast": 0.0,
        "affinity": "none",
    },
    "notebook": {
        "heads": "single",
        "blocks": 1,
        "path": "full",
        "image_size": "keep",
        "contrast": 0.0,
        "affinity": "none",
    },
}
"""Presets, each as the settings in which it differs from the defaults. recommended: the defaults, which our
measurements favour. authors: `generate_emap.py` of the Grad-ECLIP repository, with which the paper was evaluated.
notebook: its `grad_eclip_image.ipynb`."""


class GradEclipConfig(ExplainerConfig):
    """Grad-ECLIP (arXiv 2502.18816). `variant` is a preset; every other key overrides one of its settings."""

    kind: Literal["grad_eclip"] = "grad_eclip"

    variant: Literal["recommended", "authors", "notebook"] = "recommended"
    """recommended | authors | notebook, see VARIANTS. It is applied before validation, so that a stored configuration
    holds every setting by its value."""

    heads: Literal["single", "model"] = "model"
    """Attention heads in the explained blocks: `model` leaves the network as it is; `single` recomputes
    them with one head over the full width, as the authors' code does, which changes the cosine."""

    similarity: Literal["projected", "raw"] = "raw"
    """Queries and keys of the spatial weight: after the output projection (the authors' evaluation code)
    or before it (their notebook)."""

    spatial_weight: bool = True
    """Multiply by the min-max normalised cosine of query and keys."""

    blocks: Annotated[int, Field(ge=1)] = 4
    """How many of the last blocks are explained and summed. 1 is the default, and the only value, for towers whose
    tokens are pooled by one attention."""

    path: Literal["full", "class"] = "class"
    """Where gradients flow when there are several blocks: through all tokens (`full`, the authors), or
    through the class token only, with the patch tokens held constant (`class`; not from the paper,
    exact for the last block, and next to free)."""

    rectify: Literal["sum", "block"] = "block"
    """ReLU after the blocks are summed (`sum`), or on each block before (`block`, the authors). On drawn scenes
    `block` gave a box IoU of .621 against .595 (configs/README.md)."""

    def for_tower(self, kind: TowerKind) -> Self:
        """See `ExplainerConfig.for_tower`: a pool is one block."""
        if kind == "class_token" or self.blocks == 1:
            return self
        if "blocks" in self.model_fields_set:
            raise ConfigError(
                f"explain.blocks: the model has {TOWER_WORDS[kind]}, so there is one block to explain and not "
                f"{self.blocks}: set explain.blocks=1 or leave it out"
            )
        return self.model_copy(update={"blocks": 1})

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        variant = values.get("variant", "recommended")
        return {**VARIANTS.get(variant, {}), **values} if isinstance(variant, str) else values


class GradEclip(Explainer[GradEclipConfig]):
    """Grad-ECLIP with one trunk forward per image, whatever the number of phrases.

    `similarity` of a heat map is c, the cosine that was differentiated.

    Raises ConfigError for more blocks than the model has.
    """

    config_type = GradEclipConfig
    towers = ("class_token", "attention_pool", "latent_pool")
    needs = "an attention that makes the embedding"
    cost = "backward"

    def __init__(self, config: GradEclipConfig, model: ClipModel) -> None:
        super().__init__(config, model)
        way = _Blocks if isinstance(model.tower, VisionTower) else _Pool
        self._way = way(self.config, model, self.affinity.block)

    def maps(self, rgb: Tensor, texts: Tensor) -> Maps:
        """See `Explainer.maps`."""
        found = self._way(rgb, texts, looks_closer=self.looks_closer)
        flat = [weight.amax(dim=1) == 0 for weight in found.weights if weight is not None]
        local = None
        if found.parts is not None:
            with torch.no_grad():
                local = closest_patch(found.parts, texts, self.config.phrases_per_step)
        constant = torch.stack(flat).all(dim=0) if flat else None
        return Maps(found.maps, found.cosines, constant, found.tokens, found.embedding, local)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a way gives.

    Attributes:
        maps: (B, P, N) >= 0.
        weights: the spatial weights (B, N) of each block.
        cosines: (B, P).
        embedding: (B, E), in any scale.
        parts: (B, N, E), what each patch alone would mean, as `stages.explainers.dense.maskclip` has it without the
            residual; None where nobody asked.
        tokens: see `Maps.tokens`.
    """

    maps: Tensor
    weights: Sequence[Tensor | None]
    cosines: Tensor
    embedding: Tensor
    parts: Tensor | None
    tokens: Tensor | None = None


class _Pool:
    """The formula on a tower whose tokens are pooled by one attention."""

    def __init__(self, config: GradEclipConfig, model: ClipModel, _: int | None) -> None:
        assert isinstance(model.tower, PooledTower)  # noqa: S101
        self.config = config
        self.tower = model.tower.float_head()

    @torch.no_grad()
    def __call__(self, rgb: Tensor, texts: Tensor, *, looks_closer: bool) -> Found:
        pool = self.tower.pool
        seen = self.tower.look(rgb, 1 if self.config.heads == "single" else None)
        weight = _spatial_weight(self.config, pool.out, seen.query, seen.keys)
        embedding = pool.embedding(seen)
        maps, cosines = [], []
        # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
        for part in texts.split(self.config.phrases_per_step, dim=1):
            gradients, cosine = cosine_gradients(embedding, part)
            signed = pool.back(seen, gradients) @ seen.values.mT
            maps.append(_combined(self.config, [signed], [weight]))
            cosines.append(cosine)
        return Found(
            maps=torch.cat(maps, dim=1),
            weights=[weight],
            cosines=torch.cat(cosines, dim=1),
            embedding=embedding,
            parts=pool.embedding_of_each(seen) if looks_closer else None,
            tokens=seen.tokens,
        )


class _Blocks:
    """The formula on the last blocks of a transformer with a class token."""

    def __init__(self, config: GradEclipConfig, model: ClipModel, kept: int | None) -> None:
        assert isinstance(model.tower, VisionTower)  # noqa: S101
        self.kept = kept
        self.config = config
        self.tower = model.tower
        layers = len(model.tower.blocks)
        if config.blocks > layers:
            raise ConfigError(f"explain.blocks: {model.name} has {layers} blocks, not {config.blocks}")
        if kept is not None and kept > layers - config.blocks:
            raise ConfigError(
                f"explain.affinity_depth: {config.affinity_depth:g} is block {kept + 1} of {layers} in {model.name}, "
                f"and the last {config.blocks} are explained: {(layers - config.blocks + 1) / layers:.2f} at most"
            )
        # Gradients of a unit vector's cosine are too small for 16 bits, so these compute in float32. "Exact" is the
        # arithmetic: where the trunk has 16 bits, their weights are the trunk's rounded ones.
        self.exact_head = model.tower.float_head()
        self.exact_blocks = tuple(block.float() for block in model.tower.blocks[-config.blocks :])

    def __call__(self, rgb: Tensor, texts: Tensor, *, looks_closer: bool) -> Found:
        with torch.no_grad():
            first = len(self.tower.blocks) - self.config.blocks
            trunk, early = self.tower.tokens_before(rgb, first, self.kept)
        way = self._full_path if self.config.path == "full" else self._class_path
        return replace(way(trunk, texts, looks_closer), tokens=None if early is None else early[:, 1:])

    def _class_path(self, trunk: Tensor, texts: Tensor, looks_closer: bool) -> Found:
        """Last blocks with only the class token differentiated, from the tokens (B, T, D) before them."""
        blocks = self.tower.blocks[-self.config.blocks :]
        steps, weights = [], []
        x, token = trunk, trunk[:, 0].float()
        with torch.no_grad():
            for i, (block, exact) in enumerate(zip(blocks, self.exact_blocks, strict=True)):
                if i + 1 < len(blocks):
                    q, k, v = block.project(x)
                    x = block.finish(x, attend(q, k, v, self._heads(block)))
                else:
                    k, v = block.project_keys_values(x)
                keys, values = k[:, 1:].float(), v[:, 1:].float()
                token, step = class_forward(exact, token, keys, values, self._heads(block))
                steps.append(step)
                weights.append(_spatial_weight(self.config, exact.out, step.q, keys))
            embedding = self.exact_head.head(token)
            maps, cosines = [], []
            # Every product has one shape, however many phrases a neighbour has: a map's bits depend on it.
            for part in texts.split(self.config.phrases_per_step, dim=1):
                gradients, cosine = cosine_gradients(embedding, part)
                signed = attention_gradients(self.exact_head, token, steps, gradients)
                maps.append(_combined(self.config, signed, weights))
                cosines.append(cosine)
            parts = self._by_values(values) if looks_closer else None
        return Found(
            maps=torch.cat(maps, dim=1),
            weights=weights,
            cosines=torch.cat(cosines, dim=1),
            embedding=embedding,
            parts=parts,
        )

    def _full_path(self, trunk: Tensor, texts: Tensor, looks_closer: bool) -> Found:
        """Last blocks with all tokens differentiated by autograd; the last one computes only its class row."""
        outputs, values, weights = [], [], []
        x = trunk.float().requires_grad_()
        for i, block in enumerate(self.exact_blocks):
            q, k, v = block.project(x)
            if i + 1 == len(self.exact_blocks):
                q, x = q[:, :1], x[:, :1]
            output = attend(q, k, v, self._heads(block))
            x = block.finish(x, output)
            outputs.append(output)
            values.append(v[:, 1:].detach())
            weights.append(_spatial_weight(self.config, block.out, q[:, 0].detach(), k[:, 1:].detach()))
        embedding = self.exact_head.head(x[:, 0])
        gradients, cosines = cosine_gradients(embedding.detach(), texts)
        maps = []
        for gradient in gradients.unbind(dim=1):
            rows = torch.autograd.grad(embedding, outputs, gradient, retain_graph=True)
            signed = [torch.einsum("bd,bnd->bn", w[:, 0], v)[:, None] for w, v in zip(rows, values, strict=True)]
            maps.append(_combined(self.config, signed, weights))
        with torch.no_grad():
            parts = self._by_values(values[-1]) if looks_closer else None
        embedding = embedding.detach()
        return Found(maps=torch.cat(maps, dim=1), weights=weights, cosines=cosines, embedding=embedding, parts=parts)

    def _by_values(self, values: Tensor) -> Tensor:
        """Values of the patches in the last block (B, N, D) -> what each patch alone would mean (B, N, E)."""
        last = self.exact_blocks[-1]
        patches = last.out(values)
        return self.exact_head.head(patches if last.ls_1 is None else patches * last.ls_1)

    def _heads(self, block: Block) -> int:
        return 1 if self.config.heads == "single" else block.heads


def _combined(config: GradEclipConfig, signed: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
    """Signed maps (B, P, N) of the blocks and their spatial weights (B, N) -> one map (B, P, N), >= 0."""
    weighted = [s if weight is None else s * weight[:, None] for s, weight in zip(signed, weights, strict=True)]
    if config.rectify == "block":
        weighted = [s.relu() for s in weighted]
    return torch.stack(weighted).sum(dim=0).relu()


def _spatial_weight(config: GradEclipConfig, out: Layer, query: Tensor, keys: Tensor) -> Tensor | None:
    """l of the module's formula: query (B, D), keys (B, N, D) -> (B, N) in 0 .. 1; None if switched off.

    Zero where all cosines are equal. `out` is the projection behind the attention.
    """
    if not config.spatial_weight:
        return None
    with torch.no_grad():
        if config.similarity == "projected":
            query, keys = out(query), out(keys)
        s = F.cosine_similarity(query[:, None], keys, dim=-1)
        low, high = s.amin(dim=1, keepdim=True), s.amax(dim=1, keepdim=True)
        spread = high - low
        return torch.where(spread > 0, (s - low) / torch.where(spread > 0, spread, 1.0), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one block leaves behind on the way forward, float32.

    Attributes:
        block: The block's weights.
        heads: H, the number of attention heads used.
        token: (B, D), class token before the block.
        q, k, v: (B, D), its query, key and value.
        keys, values: (B, H, N, d), those of the patches.
        attention: (B, H, 1 + N), weights of the class row, with the class token first.
        middle: (B, D), class token after attention.
        slope: (B, 4 D), derivative of the activation.
    """

    block: Block
    heads: int
    token: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor
    middle: Tensor
    slope: Tensor


def class_forward(
    block: Block, token: Tensor, keys: Tensor, values: Tensor, heads: int, unseen: Tensor | None = None
) -> tuple[Tensor, Step]:
    """Class token (B, D) and patches' keys and values (B, N, D) -> class token after the block, and the step.

    On the text side the token that ends the text takes the class token's place, and the tokens before it the patches'.
    `unseen` (B, N) is True where the token must not look.
    """
    q, k, v = block.project(token)
    keys, values = split_heads(keys, heads), split_heads(values, heads)
    query, own_key, own_value = (split_heads(t[:, None], heads) for t in (q, k, v))
    scale = query.shape[-1] ** -0.5
    logits = torch.cat([query @ own_key.mT, query @ keys.mT], dim=-1) * scale
    if unseen is not None:
        logits = logits.masked_fill(F.pad(unseen, (1, 0))[:, None, None], -torch.inf)
    attention = logits.softmax(dim=-1)
    o = attention[..., :1] @ own_value + attention[..., 1:] @ values
    a = block.out(o.transpose(1, 2).flatten(1))
    middle = token + (a if block.ls_1 is None else a * block.ls_1)
    hidden = block.fc(block.ln_2(middle))
    m = block.proj(block.activation(hidden))
    step = Step(
        block=block,
        heads=heads,
        token=token,
        q=q,
        k=k,
        v=v,
        keys=keys,
        values=values,
        attention=attention[:, :, 0],
        middle=middle,
        slope=_slope(block.activation, hidden),
    )
    return middle + (m if block.ls_2 is None else m * block.ls_2), step


def attention_gradients(
    tower: VisionTower | TextTower, token: Tensor, steps: Sequence[Step], gradient: Tensor
) -> list[Tensor]:
    """dc/da of every block's class row, summed over heads, for the patches.

    Since o is linear in the attention weights, sum_h dc/da^h_i = sum_d (dc/do)_d v_i,d, which is Grad-ECLIP's
    channel-weighted value of patch i before the spatial weight.

    Args:
        tower: With `ln_post` and `output` in float32.
        token: (B, D), class token after the last block.
        steps: Of the explained blocks, in order.
        gradient: (B, P, E), dc/de of each phrase.

    Returns:
        (B, P, N) for each block, in order.
    """
    if tower.output is not None:
        gradient = gradient @ tower.output.T
    gradient = tower.ln_post.back(token, gradient)
    answers = []
    for number, step in reversed(list(enumerate(steps))):
        block = step.block
        inner = gradient if block.ls_2 is None else gradient * block.ls_2
        inner = (inner @ block.proj.weight) * step.slope[:, None]
        gradient = gradient + block.ln_2.back(step.middle, inner @ block.fc.weight)
        inner = gradient if block.ls_1 is None else gradient * block.ls_1
        per_head = split_heads(inner @ block.out.weight, step.heads)
        to_patches = per_head @ step.values.mT
        answers.append(to_patches.sum(dim=1))
        if number > 0:
            gradient = gradient + _through_attention(step, per_head, to_patches)
    return answers[::-1]


def _through_attention(step: Step, per_head: Tensor, to_patches: Tensor) -> Tensor:
    """Gradient at the block's input (B, P, D), given it at o: (B, H, P, d) and at the weights: (B, H, P, N)."""
    query, own_key, own_value = (split_heads(t[:, None], step.heads) for t in (step.q, step.k, step.v))
    to_self = per_head @ own_value.mT
    weights = step.attention[:, :, None]
    mean = weights[..., :1] * to_self + (weights[..., 1:] * to_patches).sum(dim=-1, keepdim=True)
    scale = query.shape[-1] ** -0.5
    at_self = weights[..., :1] * (to_self - mean) * scale
    at_patches = weights[..., 1:] * (to_patches - mean) * scale
    parts = (
        at_self @ own_key + at_patches @ step.keys,
        at_self @ query,
        weights[..., :1] * per_head,
    )
    joined = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=-1)
    return step.block.ln_1.back(step.token, joined @ step.block.qkv.weight)


def _slope(activation: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Derivative of the activation at `hidden`, whatever the activation is."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation(hidden).sum(), hidden)
    return slope
