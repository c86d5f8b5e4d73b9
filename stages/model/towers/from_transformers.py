"""Image towers from those of `transformers`' dual encoders: their blocks become plain tensors.

Query, key and value have one matrix here and three there. What the classes of different models
call the same part is in `_Names`. The tower of a SigLIP 2 with any aspect ratio takes patches as
rows of numbers there, which is the convolution of the same weights here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json, Sides
from phrasebox.stages.model.towers import layers
from phrasebox.stages.model.towers.pooled import AttentionPool, PooledTower
from phrasebox.stages.model.towers.tower import Placement, Tower
from phrasebox.stages.model.towers.trunk import PatchTrunk, PrefixTrunk
from phrasebox.stages.model.towers.vision import Block, VisionTower

Module = Any  # transformers is partly typed


class ImagePart(nn.Module):
    """The image side of a dual encoder of `transformers`: its vision model, and the projection behind it, if any.

    `image_size` is the side of its square images in px.
    """

    def __init__(self, vision_model: Module, projection: nn.Module | None, image_size: int) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.projection: Module = projection
        self.image_size = image_size


def build_tower(visual: ImagePart, normalisation: Json) -> Tower:
    """Build the tower of an `ImagePart`, see `from_open_clip`; `normalisation` is the `mean` and `std`.

    Raise ConfigError, with the reason, if it cannot be explained.
    """
    model = visual.vision_model
    if hasattr(model.embeddings, "cls_token"):
        return _with_registers(visual, normalisation)
    if hasattr(model.embeddings, "class_embedding"):
        return _of_clip(visual, normalisation)
    if getattr(model, "head", None) is None:
        raise ConfigError("the image tower has no head, so that its tokens make no embedding")
    return _of_patches(visual, normalisation)


def _of_clip(visual: ImagePart, normalisation: Json) -> VisionTower:
    model = visual.vision_model
    embeddings = model.embeddings
    table = embeddings.position_embedding.weight
    return VisionTower(
        patch_weight=embeddings.patch_embedding.weight,
        patch_bias=embeddings.patch_embedding.bias,
        class_token=embeddings.class_embedding,
        position_embedding=table,
        grid_hw=_square(len(table) - 1),
        ln_pre=_norm(model.pre_layrnorm),
        blocks=_blocks(model.encoder.layers, _CLIP),
        ln_post=_norm(model.post_layernorm),
        output=None if visual.projection is None else visual.projection.weight.T,
        **normalisation,
    )


def _with_registers(visual: ImagePart, normalisation: Json) -> Tower:
    """Build the tower of a TIPSv2: the first class token makes the embedding, the second is a register."""
    model = visual.vision_model
    embeddings = model.embeddings
    table = embeddings.position_embeddings[0]
    patches = embeddings.patch_embeddings.projection
    registers = embeddings.register_tokens[0]
    tower = VisionTower(
        patch_weight=patches.weight,
        patch_bias=patches.bias,
        class_token=embeddings.cls_token.flatten(),
        position_embedding=table,
        interpolation="averaging",
        registers=registers if len(registers) else None,
        grid_hw=_square(len(table) - 1),
        ln_pre=layers.NOTHING,
        blocks=_blocks(model.encoder.layer, _REGISTERS),
        ln_post=_norm(model.layernorm),
        output=None,
        **normalisation,
    )
    mlp = model.encoder.layer[-1].mlp
    return _pooled_by_last_block(tower, mlp) if hasattr(mlp, "gate_proj") else tower


def _pooled_by_last_block(tower: VisionTower, mlp: Module) -> PooledTower:
    """Return a tower with gated MLPs as one that its last attention pools: rules of explainers know no gated blocks."""
    last = tower.blocks[-1]
    q, k, v = (
        layers.Linear(weight, bias)
        for weight, bias in zip(
            last.qkv.weight.chunk(3),
            (None,) * 3 if last.qkv.bias is None else last.qkv.bias.chunk(3),
            strict=True,
        )
    )
    gated = layers.GatedUnit(
        _linear(mlp.gate_proj), _linear(mlp.up_proj), layers.Activation(mlp.act_fn.forward)
    )
    inner = layers.Chain((last.ln_2, gated, _linear(mlp.down_proj), *_scale(last.ls_2)))
    return PooledTower(
        kind="attention_pool",
        placement=tower.placement,
        trunk=PrefixTrunk(tower=replace(tower, blocks=tower.blocks[:-1])),
        dtype=tower.dtype,
        pool=AttentionPool(
            heads=last.heads,
            latent=None,
            prefix_tokens=tower.prefix_tokens,
            norm=last.ln_1,
            q=q,
            k=k,
            v=v,
            out=last.out,
            scale=layers.Chain(_scale(last.ls_1)),
            residual=True,
            finish=layers.Chain((layers.Residual(inner), tower.ln_post)),
        ),
        mean=tower.mean,
        std=tower.std,
    )


def _of_patches(visual: ImagePart, normalisation: Json) -> PooledTower:
    """Build the tower of a SigLIP 2 for any aspect ratio: a learned query pools patches without a class token."""
    model = visual.vision_model
    embeddings = model.embeddings
    head = model.head
    side = int(embeddings.patch_size)
    table = embeddings.position_embedding.weight
    rows = embeddings.patch_embedding.weight
    trunk = PatchTrunk(
        # A patch is a row of pixels with three channels each.
        patch_weight=rows.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2),
        patch_bias=embeddings.patch_embedding.bias,
        position_embedding=table,
        grid_hw=_square(len(table)),
        blocks=_blocks(model.encoder.layers, _CLIP),
        norm=_norm(model.post_layernorm),
    )
    attention = head.attention
    q, k, v = (
        layers.Linear(weight, bias)
        for weight, bias in zip(
            attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        )
    )
    mlp = head.mlp
    inner = layers.Chain(
        (
            _norm(head.layernorm),
            _linear(mlp.fc1),
            layers.Activation(mlp.activation_fn.forward),
            _linear(mlp.fc2),
        )
    )
    return PooledTower(
        kind="latent_pool",
        placement=Placement(stride_px=side),
        trunk=trunk,
        dtype=rows.dtype,
        pool=AttentionPool(
            heads=int(attention.num_heads),
            latent=head.probe.flatten(),
            prefix_tokens=0,
            q=q,
            k=k,
            v=v,
            out=_linear(attention.out_proj),
            finish=layers.Chain((layers.Residual(inner),)),
        ),
        **normalisation,
    )


# --- parts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """What a class calls the parts of its blocks."""

    norms: tuple[str, str]
    attention: str
    heads: str
    out: str
    scales: tuple[str, str] | None


_CLIP: Final = _Names(
    norms=("layer_norm1", "layer_norm2"),
    attention="self_attn",
    heads="num_heads",
    out="out_proj",
    scales=None,
)
_REGISTERS: Final = _Names(
    norms=("norm1", "norm2"),
    attention="attention",
    heads="num_attention_heads",
    out="o_proj",
    scales=("layer_scale1", "layer_scale2"),
)


def _blocks(modules: Iterable[Module], names: _Names) -> tuple[Block, ...]:
    return tuple(_block(module, names) for module in modules)


def _block(module: Module, names: _Names) -> Block:
    attention = getattr(module, names.attention)
    norms = [_norm(getattr(module, name)) for name in names.norms]
    scales: Sequence[Tensor | None] = (None, None)
    if names.scales is not None:
        scales = [getattr(module, name).lambda1 for name in names.scales]
    mlp = module.mlp
    if hasattr(mlp, "gate_proj"):
        fc = _join(mlp.gate_proj, mlp.up_proj)
        activation = _gate
        proj = _linear(mlp.down_proj)
    else:
        fc = _linear(mlp.fc1)
        activation = mlp.activation_fn.forward
        proj = _linear(mlp.fc2)
    return Block(
        heads=int(getattr(attention, names.heads)),
        ln_1=norms[0],
        qkv=_join(attention.q_proj, attention.k_proj, attention.v_proj),
        out=_linear(getattr(attention, names.out)),
        ls_1=scales[0],
        ln_2=norms[1],
        fc=fc,
        activation=activation,
        proj=proj,
        ls_2=scales[1],
    )


def _gate(x: Tensor) -> Tensor:
    """Apply SwiGLU to gate and value side by side."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def _join(*modules: Module) -> layers.Linear:
    """Join several products of the same tokens to one."""
    biases = [module.bias for module in modules]
    return layers.Linear(
        torch.cat([module.weight for module in modules]),
        None if biases[0] is None else torch.cat(biases),
    )


def _linear(module: Module) -> layers.Linear:
    return layers.Linear(module.weight, module.bias)


def _norm(module: Module) -> layers.LayerNorm:
    return layers.LayerNorm(module.weight, module.bias, module.eps)


def _scale(factors: Tensor | None) -> tuple[layers.Layer, ...]:
    return () if factors is None else (layers.Scale(factors),)


def _square(cells: int) -> Sides:
    """Return the rows and columns of a square grid. Raise ConfigError if it is none."""
    side = math.isqrt(cells)
    if side * side != cells:
        raise ConfigError(f"the image tower has positions for {cells} patches, which make no square")
    return side, side
