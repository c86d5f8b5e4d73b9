"""open_clip's timm image towers taken apart: the trunk stays timm's, what pools its tokens becomes tensors."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any, Final

import torch
from timm.layers import (
    AttentionPool2d,
    Format,
    GELUTanh,
    GluMlp,
    Mlp,
    QuickGELU,
    RotAttentionPool2d,
    SelectAdaptivePool2d,
    SwiGLU,
    apply_rot_embed_cat,
    resample_abs_pos_embed,
)
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

from stages.contract.errors import ConfigError
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.layers import (
    Activation,
    Chain,
    Gated,
    Layer,
    LayerNorm,
    Linear,
    Residual,
    Scale,
    linear,
)
from stages.shared.model.towers.pooled import AttentionPool, PooledTower
from stages.shared.model.towers.tower import Placement, Tower
from stages.shared.model.towers.trunk import FeatureTrunk, GridTrunk, PatchTrunk, private_copy, shared_copy
from stages.shared.model.towers.vision import split_heads

_ACTIVATIONS: Final = (nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, GELUTanh, QuickGELU)

Module = Any
"""timm and open_clip are untyped."""

Precision = torch.dtype | None
"""Of weights; None keeps the model's own."""


def take_apart(visual: Module, precision: Precision, normalisation: dict[str, Tensor]) -> Tower:
    """Take an open_clip `TimmModel` apart, see `take_apart.take_apart`.

    Args:
        visual: the tower.
        precision: of all weights.
        normalisation: `mean` and `std`, see `Tower`.

    Raises:
        ConfigError: the tower cannot be explained, and why.
    """
    trunk = shared_copy(visual.trunk).to(precision)
    pool = getattr(visual.head, "pool", None)
    behind = tuple(
        layer for name, part in visual.head.named_children() if name != "pool" for layer in layers_of(part, precision)
    )
    common: dict[str, Any] = {"dtype": next(trunk.parameters()).dtype, **normalisation}
    size_px = int(visual.image_size[0])
    if isinstance(pool, (AttentionPool2d, RotAttentionPool2d)):
        return PooledTower(
            kind="attention_pool",
            placement=placement_of(trunk, size_px, lambda bare, pixels: bare(pixels).shape[-1]),
            trunk=_grid_trunk(pool, trunk),
            pool=_grid_pool(pool, behind, precision),
            **common,
        )
    if getattr(trunk, "global_pool", None) == "map":
        _take_any_size(trunk)
        return PooledTower(
            kind="latent_pool",
            placement=_placement_of_patches(trunk, size_px),
            trunk=PatchTrunk(body=trunk, leave_out=_left_out(trunk)),
            pool=_latent_pool(visual.trunk, behind, precision),
            **common,
        )
    if getattr(trunk, "global_pool", None) == "token" and hasattr(trunk, "blocks"):
        _take_any_size(trunk)
        return PooledTower(
            kind="attention_pool",
            placement=_placement_of_patches(trunk, size_px),
            pool=_last_block(trunk, behind, precision),
            trunk=PatchTrunk(body=_without_last_block(trunk)),
            **common,
        )
    averaged = _average_head(visual.trunk, precision)
    if averaged is not None:
        placement, body = _features(trunk, size_px)
        return AveragedTower(placement=placement, trunk=body, finish=Chain((*averaged, *behind)), **common)
    raise ConfigError(f"the image tower is timm's {type(visual.trunk).__name__}, whose pooling is not known here")


# --- tokens that are averaged


def _average_head(trunk: Module, precision: Precision) -> tuple[Layer, ...] | None:
    """What stands between the mean of the tokens and the tower's own head; None if they are not averaged."""
    if getattr(trunk, "global_pool", None) == "avg" and hasattr(trunk, "fc_norm"):
        parts: list[Module] = [trunk.fc_norm, trunk.head]
        if getattr(trunk, "attn_pool", None) is not None:
            return None
    else:
        holder = trunk if isinstance(getattr(trunk, "global_pool", None), SelectAdaptivePool2d) else trunk.head
        pool = getattr(holder, "global_pool", None)
        if not isinstance(pool, SelectAdaptivePool2d) or pool.pool_type != "avg":
            return None
        names = [name for name, _ in holder.named_children()]
        after = names[names.index("global_pool") + 1 :]
        parts = [getattr(holder, name) for name in after if not isinstance(getattr(holder, name), nn.Flatten)]
    return tuple(layer for part in parts for layer in layers_of(part, precision))


def _features(trunk: Module, size_px: int) -> tuple[Placement, Callable[[Tensor], Tensor]]:
    """Of a private copy of a trunk that averages: where its tokens are, and pixels -> tokens (B, N, D)."""
    if hasattr(trunk, "patch_embed") and hasattr(trunk, "num_prefix_tokens"):
        _take_any_size(trunk)
        tokens = PatchTrunk(body=trunk, leave_out=int(trunk.num_prefix_tokens))
        return _placement_of_patches(trunk, size_px), tokens
    if hasattr(trunk, "patch_embed"):  # of a Swin, whose windows are then filled up
        trunk.patch_embed.strict_img_size = False
    for part in trunk.modules():
        if hasattr(part, "dynamic_mask"):
            part.dynamic_mask = True
    last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"

    def side_of(bare: Module, pixels: Tensor) -> int:
        return int(bare.forward_features(pixels).shape[1 if last else -1])

    return placement_of(trunk, size_px, side_of), FeatureTrunk(body=trunk.forward_features, channels_last=last)


# --- a grid of features, pooled as in CLIP's ResNets


def _grid_trunk(pool: Module, trunk: Module) -> GridTrunk:
    if pool.pool_type != "token":
        raise ConfigError(f"the image tower's attention pooling is of type {pool.pool_type!r}, not 'token'")
    asking = None if pool.cls_token is None else pool.cls_token.flatten()
    if isinstance(pool, RotAttentionPool2d):
        return GridTrunk(body=trunk, asking=asking)
    table, old_hw = pool.pos_embed[None], list(pool.feat_size)

    def positions(grid_hw: tuple[int, int]) -> Tensor:
        """As timm resizes them."""
        resized: Tensor = resample_abs_pos_embed(table, list(grid_hw), old_size=old_hw, num_prefix_tokens=1)
        return resized[0]

    return GridTrunk(body=trunk, asking=asking, positions=positions)


def _grid_pool(pool: Module, behind: tuple[Layer, ...], precision: Precision) -> AttentionPool:
    """timm's attention pooling of a grid, with a position embedding or turned keys."""
    if pool.qkv is None:
        q, k, v = (linear(part, precision) for part in (pool.q, pool.k, pool.v))
    else:
        q, k, v = split_linear(pool.qkv, 3, precision)
    heads = int(pool.num_heads)
    return AttentionPool(
        heads=heads,
        latent=None,
        others=1,
        q=q,
        k=k,
        v=v,
        turn=_turn(pool.pos_embed, heads, pool.rotate_half) if isinstance(pool, RotAttentionPool2d) else None,
        out=Chain(layers_of(pool.proj, precision)),
        finish=Chain(behind),
    )


def _turn(rope: Module, heads: int, half: bool) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """What a rotary position embedding does to keys (B, N, D) of a grid, as timm does it."""
    # In its own precision: angles are too fine for 16 bits.
    rope = private_copy(rope, None)

    def turned(keys: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        angles = rope.get_embed(list(grid_hw))
        angles = torch.cat(angles, dim=-1) if isinstance(angles, tuple) else angles
        apart: Tensor = apply_rot_embed_cat(split_heads(keys, heads), angles.to(keys.dtype), half=half)
        return apart.transpose(-3, -2).flatten(-2)

    return turned


# --- patches, pooled by a class token in the last block


def _without_last_block(trunk: Module) -> Module:
    """The private copy itself, which ends before its last block and the norm after it."""
    trunk.blocks = trunk.blocks[:-1]
    trunk.norm = nn.Identity()
    return trunk


def _last_block(trunk: Module, behind: tuple[Layer, ...], precision: Precision) -> AttentionPool:
    """The last block as the class token goes through it, and what comes after it."""
    block = trunk.blocks[-1]
    if type(block).__name__ not in ("Block", "EvaBlock", "EvaBlockPostNorm"):
        raise ConfigError(f"the image tower's blocks are {type(block).__name__}s, which are not known here")
    attn, norms_after = block.attn, type(block).__name__ == "EvaBlockPostNorm"
    obstacles = {
        "qk-norm": not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity),
        "gated attention": getattr(attn, "gate", None) is not None,
        "positions that differ between its blocks": bool(getattr(trunk, "rope_mixed", False)),
        "keys shared by heads": getattr(attn, "num_kv_groups", 1) != 1,
    }
    for what, is_there in obstacles.items():
        if is_there:
            raise ConfigError(f"the image tower's last block has {what}")
    q, k, v = _queries_keys_values(attn, precision)
    rope, heads = getattr(trunk, "rope", None), int(attn.num_heads)
    norm_1, norm_2 = layers_of(block.norm1, precision), layers_of(block.norm2, precision)
    scale_1, scale_2 = (_scale_of(block, number, precision) for number in (1, 2))
    inner = (*layers_of(block.mlp, precision), *scale_2)
    return AttentionPool(
        heads=heads,
        latent=None,
        others=int(trunk.num_prefix_tokens),
        norm=None if norms_after else Chain(norm_1),
        q=q,
        k=k,
        v=v,
        turn=None if rope is None else _turn(rope, heads, bool(getattr(attn, "rotate_half", False))),
        out=Chain((*layers_of(attn.norm, precision), *layers_of(attn.proj, precision))),
        scale=Chain((*(norm_1 if norms_after else ()), *scale_1)),
        residual=True,
        finish=Chain(
            (
                Residual(Chain((*inner, *norm_2) if norms_after else (*norm_2, *inner))),
                *(layer for part in (trunk.norm, trunk.fc_norm, trunk.head) for layer in layers_of(part, precision)),
                *behind,
            )
        ),
    )


def _queries_keys_values(attn: Module, precision: Precision) -> list[Linear]:
    if getattr(attn, "qkv", None) is None:
        return [linear(part, precision) for part in (attn.q_proj, attn.k_proj, attn.v_proj)]
    parts = split_linear(attn.qkv, 3, precision)
    if getattr(attn, "q_bias", None) is None:
        return parts
    # Eva holds them beside the product; keys have none.
    biases = (attn.q_bias.to(precision), None, attn.v_bias.to(precision))
    return [Linear(part.weight, bias) for part, bias in zip(parts, biases, strict=True)]


def _scale_of(block: Module, number: int, precision: Precision) -> tuple[Layer, ...]:
    """LayerScale of a branch, wherever the block holds it."""
    factors = getattr(block, f"gamma_{number}", None)
    module = getattr(block, f"ls{number}", None)
    if factors is None and module is not None and not isinstance(module, nn.Identity):
        factors = module.gamma
    return () if factors is None else (Scale(factors.to(precision)),)


# --- patches, pooled by a learned query


def _latent_pool(trunk: Module, behind: tuple[Layer, ...], precision: Precision) -> AttentionPool:
    """SigLIP's pooling: proj, then y + mlp(norm(y))."""
    pool = trunk.attn_pool
    obstacles = {
        "more than one query": pool.latent_len != 1,
        "qk-norm": not isinstance(pool.q_norm, nn.Identity) or not isinstance(pool.k_norm, nn.Identity),
        "positions of its own": pool.pos_embed is not None,
        "another pooling behind it": pool.pool != "token",
    }
    for what, is_there in obstacles.items():
        if is_there:
            raise ConfigError(f"the image tower's attention pooling has {what}")
    k, v = split_linear(pool.kv, 2, precision)
    inner = () if pool.mlp is None else (*layers_of(pool.norm, precision), *layers_of(pool.mlp, precision))
    finish = (
        *((Residual(Chain(inner)),) if inner else ()),
        *(layer for part in (trunk.fc_norm, trunk.head) for layer in layers_of(part, precision)),
        *behind,
    )
    return AttentionPool(
        heads=int(pool.num_heads),
        latent=pool.latent.flatten().to(precision),
        others=int(trunk.num_prefix_tokens) - _left_out(trunk),
        q=None if isinstance(pool.q, nn.Identity) else linear(pool.q, precision),
        k=k,
        v=v,
        out=Chain(layers_of(pool.proj, precision)),
        finish=Chain(finish),
    )


def _left_out(trunk: Module) -> int:
    """How many tokens the pool does not see: class and register tokens of a `VisionTransformer`, none of an `Eva`."""
    return int(trunk.num_prefix_tokens) if getattr(trunk, "pool_include_prefix", True) is False else 0


def _take_any_size(trunk: Module) -> None:
    """Let a private copy of a transformer take images of other sizes, with resized positions, as timm's option does."""
    embed = trunk.patch_embed
    trunk.dynamic_img_size, embed.strict_img_size = True, False
    embed.flatten, embed.output_fmt = False, Format.NHWC
    rope = getattr(trunk, "rope", None)
    if rope is not None:
        rope._use_cached_embed = False


def _placement_of_patches(trunk: Module, size_px: int) -> Placement:
    patch = int(trunk.patch_embed.patch_size[0])
    return placement_of(trunk, size_px // patch * patch, _side_of_patches)


def _side_of_patches(bare: Module, pixels: Tensor) -> int:
    return int(bare.patch_embed(pixels).shape[1])


# --- parts


def split_linear(module: Module, parts: int, precision: Precision) -> list[Linear]:
    """A product that makes several things at once, as one product for each."""
    whole = linear(module, precision)
    size = len(whole.weight) // parts
    # Slices, each of which stands for itself: an optimiser could not change what is cut into chunks.
    places = [slice(number * size, (number + 1) * size) for number in range(parts)]
    return [Linear(whole.weight[place], None if whole.bias is None else whole.bias[place]) for place in places]


def layers_of(module: Module, precision: Precision) -> tuple[Layer, ...]:
    """What a module does to one token, in evaluation mode.

    Raises:
        ConfigError: it is none of those that are known here.
    """
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return ()
    if isinstance(module, nn.Linear):
        return (linear(module, precision),)
    if isinstance(module, nn.LayerNorm) and module.weight is not None:
        bias = None if module.bias is None else module.bias.to(precision)
        return (LayerNorm(module.weight.to(precision), bias, module.eps),)
    if isinstance(module, _ACTIVATIONS):
        return (Activation(module.forward),)
    if isinstance(module, nn.Sequential):
        return tuple(layer for part in module for layer in layers_of(part, precision))
    if isinstance(module, Mlp):
        parts: tuple[Module, ...] = (module.fc1, module.act, module.norm, module.fc2)
        return tuple(layer for part in parts for layer in layers_of(part, precision))
    if isinstance(module, (SwiGLU, GluMlp)):
        if isinstance(module, SwiGLU):
            gate, up = linear(module.fc1_g, precision), linear(module.fc1_x, precision)
        else:
            gate, up = split_linear(module.fc1, 2, precision)
            if module.gate_last:
                gate, up = up, gate
        behind = (*layers_of(module.norm, precision), *layers_of(module.fc2, precision))
        return (Gated(gate, up, Activation(module.act.forward)), *behind)
    raise ConfigError(f"the image tower ends in a {type(module).__name__}, which is not known here")


# --- where the tokens are


def placement_of(trunk: Module, size_px: int, side_of: Callable[[Module, Tensor], int]) -> Placement:
    """Where the tokens of a private copy of a trunk are, found by a pass without memory.

    Of layers that work side by side on one grid, such as a block and its shortcut, the mean counts: both give to the
    sum. What makes the grid coarser without a kernel of its own, such as merging 2 x 2 patches, moves nothing.

    Args:
        trunk: the copy.
        size_px: side of the images.
        side_of: sends pixels (1, 3, size, size) through a copy and gives the side of the grid.
    """
    bare = private_copy(trunk, None).to("meta")
    shifts: dict[int, list[float]] = {}  # by the side of the grid that goes in

    def note(module: Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        side, made = given[0].shape[-1], answer.shape[-1]
        if made >= side:
            return
        kernel, stride, dilation = (_first(getattr(module, name, 1)) for name in ("kernel_size", "stride", "dilation"))
        if type(module).__name__.endswith("Same"):  # TensorFlow's padding: the smaller half in front
            padding = get_same_padding(side, kernel, stride, dilation) // 2
        else:
            padding = _first(module.padding)
        shift = (kernel - 1) * dilation / 2 - padding - (stride - 1) / 2
        shifts.setdefault(side, []).append(shift * (size_px // side))

    for module in bare.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            module.register_forward_hook(note)
    dtype = next(bare.parameters()).dtype
    side = side_of(bare, torch.zeros(1, 3, size_px, size_px, device="meta", dtype=dtype))
    return Placement(stride_px=size_px // side, shift_px=sum(map(fmean, shifts.values())))


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)
