"""Image towers from open_clip's timm towers: the trunk stays timm's, and the pool becomes tensors.

timm pools in four ways, see `build_tower`. What a block or a pool must not have is beside them
(`_obstacle`), and what each kind of layer does to one token in `_LAYERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from timm import layers as timm_layers
from torch import Tensor, nn

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json, Sides
from phrasebox.stages.model.towers import layers
from phrasebox.stages.model.towers.pooled import AttentionPool, AveragedTower, PooledTower, Turn
from phrasebox.stages.model.towers.tower import Placement, Tower
from phrasebox.stages.model.towers.trunk import GridTrunk, TokenTrunk, placement_of, shared_copy
from phrasebox.stages.model.towers.vision import join_heads, split_heads

Module = Any  # timm and open_clip are untyped


def build_tower(visual: Module, normalisation: dict[str, Tensor]) -> Tower:
    """Build the tower of an open_clip `TimmModel`, see `from_open_clip`; `normalisation` is the `mean` and `std`."""
    parts = _Parts(
        trunk=shared_copy(visual.trunk),
        pool=getattr(visual.head, "pool", None),
        tail=_read(*(part for name, part in visual.head.named_children() if name != "pool")),
        size_px=int(visual.image_size[0]),
        common={"dtype": next(visual.trunk.parameters()).dtype, **normalisation},
    )
    pooling = getattr(parts.trunk, "global_pool", None)
    if isinstance(parts.pool, timm_layers.AttentionPool2d):
        return _grid(parts)
    if pooling == "map":
        return _latent(parts)
    if pooling == "token" and hasattr(parts.trunk, "blocks"):
        return _class_token(parts)
    head = _behind_mean(parts.trunk)
    if head is not None:
        return _averaged(parts, head)
    raise ConfigError(
        f"the image tower is timm's {type(visual.trunk).__name__}, whose pooling is not known here"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts of a timm tower."""

    trunk: Module  # a copy of timm's network with its weights, which may be changed
    pool: Module  # open_clip's pool of the network's features; None where the network pools itself
    tail: tuple[layers.Layer, ...]  # the rest of open_clip's tower
    size_px: int  # side of the images
    common: Json  # arguments of every kind of tower

    def placement_of_patches(self) -> Placement:
        """Let the trunk, a transformer, take images of other sizes as timm's option does, and find its tokens."""
        embed = self.trunk.patch_embed
        self.trunk.dynamic_img_size = True
        embed.strict_img_size = False
        embed.flatten = False
        embed.output_fmt = timm_layers.Format.NHWC
        rope = getattr(self.trunk, "rope", None)
        if rope is not None:
            rope._use_cached_embed = False
        patch = int(embed.patch_size[0])
        return placement_of(
            self.trunk,
            self.size_px // patch * patch,
            lambda bare, pixels: bare.patch_embed(pixels).shape[1],
        )


# --- a grid of features, pooled as in CLIP's ResNets


def _grid(parts: _Parts) -> PooledTower:
    pool = parts.pool
    q, k, v = _split(pool.qkv, 3)

    def positions(grid_hw: Sides) -> Tensor:
        table = pool.pos_embed[None]
        old_hw = list(pool.feat_size)
        resized: Tensor = timm_layers.resample_abs_pos_embed(
            table, list(grid_hw), old_size=old_hw, num_prefix_tokens=1
        )
        return resized[0]

    return PooledTower(
        kind="attention_pool",
        placement=placement_of(parts.trunk, parts.size_px, lambda bare, pixels: bare(pixels).shape[-1]),
        trunk=GridTrunk(body=parts.trunk, positions=positions),
        pool=AttentionPool(
            heads=int(pool.num_heads),
            latent=None,
            prefix_tokens=1,
            q=q,
            k=k,
            v=v,
            out=layers.Chain(_read(pool.proj)),
            finish=layers.Chain(parts.tail),
        ),
        **parts.common,
    )


def _turn(rope: Module, attention: Module) -> Turn:
    """Apply a rotary position embedding to keys (B, N, D) of a grid, as timm's attention does."""
    heads = int(attention.num_heads)
    half = bool(getattr(attention, "rotate_half", False))

    def turn(keys: Tensor, grid_hw: Sides) -> Tensor:
        angles = rope.get_embed(list(grid_hw))
        angles = torch.cat(angles, dim=-1) if isinstance(angles, tuple) else angles
        return join_heads(
            timm_layers.apply_rot_embed_cat(split_heads(keys, heads), angles.to(keys.dtype), half=half)
        )

    return turn


# --- patches, pooled by a learned query


def _latent(parts: _Parts) -> PooledTower:
    trunk = parts.trunk
    pool = parts.trunk.attn_pool
    _obstacle(
        "attention pooling",
        {
            "more than one query": pool.latent_len != 1,
            "qk-norm": not _is_nothing(pool.q_norm, pool.k_norm),
            "positions of its own": pool.pos_embed is not None,
            "another pooling behind it": pool.pool != "token",
        },
    )
    placement = parts.placement_of_patches()
    # Class and register tokens that the pool does not see: those of a `VisionTransformer`, none
    # of an `Eva`.
    ignored = int(trunk.num_prefix_tokens) if getattr(trunk, "pool_include_prefix", True) is False else 0
    k, v = _split(pool.kv, 2)
    inner = () if pool.mlp is None else _read(pool.norm, pool.mlp)
    residual = (layers.Residual(layers.Chain(inner)),) if inner else ()
    return PooledTower(
        kind="latent_pool",
        placement=placement,
        trunk=TokenTrunk(body=trunk.forward_features, tokens_of=lambda tokens: tokens[:, ignored:]),
        pool=AttentionPool(
            heads=int(pool.num_heads),
            latent=pool.latent.flatten(),
            prefix_tokens=int(trunk.num_prefix_tokens) - ignored,
            q=None if _is_nothing(pool.q) else _linear(pool.q),
            k=k,
            v=v,
            out=layers.Chain(_read(pool.proj)),
            finish=layers.Chain((*residual, *_read(trunk.fc_norm, trunk.head), *parts.tail)),
        ),
        **parts.common,
    )


# --- patches, pooled by a class token in the last block


def _class_token(parts: _Parts) -> PooledTower:
    trunk = parts.trunk
    block = trunk.blocks[-1]
    rope = getattr(trunk, "rope", None)
    kind = type(block).__name__
    if kind not in ("Block", "EvaBlock", "EvaBlockPostNorm"):
        raise ConfigError(f"the image tower's blocks are {kind}s, which are not known here")
    attn = block.attn
    norms_after = kind == "EvaBlockPostNorm"
    _obstacle(
        "last block",
        {
            "qk-norm": not _is_nothing(attn.q_norm, attn.k_norm),
            "gated attention": getattr(attn, "gate", None) is not None,
            "positions that differ between its blocks": bool(getattr(trunk, "rope_mixed", False)),
            "keys shared by heads": getattr(attn, "num_kv_groups", 1) != 1,
        },
    )
    placement = parts.placement_of_patches()
    if getattr(attn, "qkv", None) is None:
        q, k, v = (_linear(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
    else:
        q, k, v = _split(attn.qkv, 3)
        if getattr(attn, "q_bias", None) is not None:  # Eva holds them beside the product; keys have none
            biases = (attn.q_bias, None, attn.v_bias)
            q, k, v = (
                layers.Linear(linear.weight, bias) for linear, bias in zip((q, k, v), biases, strict=True)
            )
    norm_1 = _read(block.norm1)
    norm_2 = _read(block.norm2)
    inner = (*_read(block.mlp), *_scale(block, 2))
    after = (layers.Residual(layers.Chain((*inner, *norm_2) if norms_after else (*norm_2, *inner))),)
    pool = AttentionPool(
        heads=int(attn.num_heads),
        latent=None,
        prefix_tokens=int(trunk.num_prefix_tokens),
        norm=layers.Chain(() if norms_after else norm_1),
        q=q,
        k=k,
        v=v,
        turn=None if rope is None else _turn(rope, attn),
        out=layers.Chain(_read(attn.norm, attn.proj)),
        scale=layers.Chain((*(norm_1 if norms_after else ()), *_scale(block, 1))),
        residual=True,
        finish=layers.Chain((*after, *_read(trunk.norm, trunk.fc_norm, trunk.head), *parts.tail)),
    )
    trunk.blocks = trunk.blocks[:-1]
    trunk.norm = nn.Identity()
    return PooledTower(
        kind="attention_pool", placement=placement, trunk=trunk.forward_features, pool=pool, **parts.common
    )


# --- tokens that are averaged


def _behind_mean(trunk: Module) -> list[Module] | None:
    """Return the layers behind the mean of the network's tokens; None if it does not average them."""
    if getattr(trunk, "global_pool", None) == "avg" and hasattr(trunk, "fc_norm"):
        return [trunk.fc_norm, trunk.head]
    head = dict(trunk.head.named_children()) if hasattr(trunk, "head") else {}
    pool = head.get("global_pool")
    if not isinstance(pool, timm_layers.SelectAdaptivePool2d) or pool.pool_type != "avg":
        return None
    return list(head.values())[list(head).index("global_pool") + 1 :]


def _averaged(parts: _Parts, head: list[Module]) -> AveragedTower:
    trunk = parts.trunk
    if hasattr(trunk, "patch_embed") and hasattr(trunk, "num_prefix_tokens"):
        placement = parts.placement_of_patches()
        prefix_tokens = int(trunk.num_prefix_tokens)

        def tokens_of(features: Tensor) -> Tensor:
            return features[:, prefix_tokens:]
    else:
        placement = placement_of(
            trunk, parts.size_px, lambda bare, pixels: bare.forward_features(pixels).shape[-1]
        )

        def tokens_of(features: Tensor) -> Tensor:
            return features.flatten(2).transpose(1, 2)

    return AveragedTower(
        placement=placement,
        trunk=TokenTrunk(body=trunk.forward_features, tokens_of=tokens_of),
        finish=layers.Chain((*_read(*head), *parts.tail)),
        **parts.common,
    )


# --- parts


def _is_nothing(*modules: Module) -> bool:
    return all(isinstance(module, nn.Identity) for module in modules)


def _obstacle(part: str, obstacles: dict[str, bool]) -> None:
    for obstacle, is_present in obstacles.items():
        if is_present:
            raise ConfigError(f"the image tower's {part} has {obstacle}")


def _linear(module: Module) -> layers.Linear:
    return layers.Linear(module.weight, module.bias)


def _split(module: Module, parts: int) -> list[layers.Linear]:
    """Split one product into several of the same size."""
    size = len(module.weight) // parts
    # Slices, not chunks: each is a tensor of its own, which an optimiser can change.
    slices = [slice(start, start + size) for start in range(0, parts * size, size)]
    return [
        layers.Linear(module.weight[rows], None if module.bias is None else module.bias[rows])
        for rows in slices
    ]


def _scale(block: Module, number: int) -> tuple[layers.Layer, ...]:
    """Return the LayerScale of a branch, wherever the block holds it."""
    factors = getattr(block, f"gamma_{number}", None)
    module = getattr(block, f"ls{number}", None)
    if factors is None and module is not None and not _is_nothing(module):
        factors = module.gamma
    return () if factors is None else (layers.Scale(factors),)


def _read(*modules: Module) -> tuple[layers.Layer, ...]:
    """Return the layers of modules in sequence, for one token, in evaluation mode.

    Raise ConfigError for unknown modules.
    """
    sequence: list[layers.Layer] = []
    for module in modules:
        convert = next((convert for kinds, convert in _LAYERS if isinstance(module, kinds)), None)
        if convert is None:
            raise ConfigError(f"the image tower ends in a {type(module).__name__}, which is not known here")
        sequence += convert(module)
    return tuple(sequence)


def _norm(module: Module) -> tuple[layers.Layer, ...]:
    if module.weight is None:
        raise ConfigError("the image tower ends in a LayerNorm without weights, which is not known here")
    return (layers.LayerNorm(module.weight, module.bias, module.eps),)


def _gated(module: Module) -> tuple[layers.Layer, ...]:
    if isinstance(module, timm_layers.SwiGLU):
        gate = _linear(module.fc1_g)
        up = _linear(module.fc1_x)
    else:
        gate, up = _split(module.fc1, 2)
        gate, up = (up, gate) if module.gate_last else (gate, up)
    return (
        layers.GatedUnit(gate, up, layers.Activation(module.act.forward)),
        *_read(module.norm, module.fc2),
    )


_FUNCTIONS: Final = (
    nn.GELU,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    timm_layers.GELU,
    timm_layers.GELUTanh,
    timm_layers.QuickGELU,
)

_LAYERS: Final[tuple[tuple[tuple[type, ...], Callable[[Module], tuple[layers.Layer, ...]]], ...]] = (
    ((nn.Identity, nn.Dropout, nn.Flatten), lambda module: ()),
    ((nn.Linear,), lambda module: (_linear(module),)),
    ((nn.LayerNorm,), _norm),
    (_FUNCTIONS, lambda module: (layers.Activation(module.forward),)),
    ((nn.Sequential,), lambda module: _read(*module)),
    ((timm_layers.Mlp,), lambda module: _read(module.fc1, module.act, module.norm, module.fc2)),
    ((timm_layers.SwiGLU, timm_layers.GluMlp), _gated),
)
"""Kinds of modules -> their layers."""
