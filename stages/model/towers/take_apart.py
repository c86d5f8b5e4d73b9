"""An open_clip image tower taken apart into what explainers work on.

Transformers with a class token become plain tensors. Of towers that one attention pools, the trunk is kept as it is, as
a private copy with the same weights, and the pool becomes tensors. `check_supported` refuses all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from stages.contract.errors import ConfigError
from stages.model.towers import layers, take_apart_timm, vision
from stages.model.towers.averaged import AveragedTower
from stages.model.towers.plan import RESNET_STRIDE_PX, SUPPORTED
from stages.model.towers.pooled import AttentionPool, PooledTower
from stages.model.towers.take_apart_timm import linear
from stages.model.towers.tower import Placement, Tower
from stages.model.towers.trunk import BlockTrunk, GridTrunk, private_copy

Model = Any
"""An open_clip model or a part of one: open_clip is untyped."""


def check_supported(model: Model) -> None:
    """Raise ConfigError, which names the obstacle, if the image tower cannot be explained."""
    visual = getattr(model, "visual", None)
    if visual is None:
        raise ConfigError(f"a {type(model).__name__} is not an open_clip model. {SUPPORTED}")
    take_apart(visual, (0.0,) * 3, (1.0,) * 3, None)


def take_apart(visual: Model, mean: Sequence[float], std: Sequence[float], precision: torch.dtype | None) -> Tower:
    """Take an image tower apart.

    Args:
        visual: the tower; it is only read.
        mean: of the RGB channels in 0-1, as the model was trained.
        std: their standard deviation.
        precision: of all weights. With None they keep the model's own: that of its matrices, except for layer norms,
            which keep theirs, since open_clip's half-precision models leave them in float32.

    Raises:
        ConfigError: the tower cannot be explained, and why.
    """
    device = next(visual.parameters()).device
    normalisation = {"mean": torch.tensor(mean, device=device), "std": torch.tensor(std, device=device)}
    if isinstance(visual, ModifiedResNet):
        return _resnet(visual, precision, normalisation)
    if isinstance(visual, TimmModel):
        return take_apart_timm.take_apart(visual, precision, normalisation)
    if not isinstance(visual, VisionTransformer):
        raise ConfigError(f"the image tower is a {type(visual).__name__}. {SUPPORTED}")
    if visual.attn_pool is not None:
        raise ConfigError(f"the image tower ends in an attention pooler with many queries. {SUPPORTED}")
    if visual.pool_type not in ("tok", "avg"):
        raise ConfigError(f"the image tower pools by {visual.pool_type!r}, not by its class token. {SUPPORTED}")
    for block in visual.transformer.resblocks:
        obstacle = _obstacle(block)
        if obstacle:
            raise ConfigError(f"the image tower's blocks have {obstacle}. {SUPPORTED}")
    tower = _transformer(visual, precision, normalisation)
    return tower if visual.pool_type == "tok" else _averaged(tower, norm_first=not visual.final_ln_after_pool)


def _averaged(tower: vision.VisionTower, *, norm_first: bool) -> AveragedTower:
    """The same transformer with its patches averaged, as in CLIPA, and the norm before or after the mean."""
    output = () if tower.output is None else (layers.Linear(tower.output.mT, None),)
    return AveragedTower(
        placement=tower.placement,
        trunk=BlockTrunk(tower=tower, norm=tower.ln_post if norm_first else None),
        finish=layers.Chain(output if norm_first else (tower.ln_post, *output)),
        dtype=tower.dtype,
        mean=tower.mean,
        std=tower.std,
    )


def _obstacle(block: Model) -> str:
    """What in a block changes the formula, or ""."""
    plain = isinstance(block, ResidualAttentionBlock) and isinstance(block.attn, nn.MultiheadAttention)
    custom = isinstance(block, CustomResidualAttentionBlock) and isinstance(block.attn, Attention)
    if not plain and not custom:
        return f"an unknown type {type(block).__name__}"
    attn = block.attn
    if plain:
        if attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn:
            return "attention with separate projections or extra tokens"
        return ""
    identities = {
        "qk-norm": attn.ln_q,
        "inner norm": attn.ln_inner,
        "attention norm": block.ln_attn,
        "MLP norm": block.mlp.ln,
    }
    for name, module in identities.items():
        if not isinstance(module, nn.Identity):
            return name
    if attn.logit_scale is not None:
        return "scaled cosine attention"
    if attn.head_scale is not None:
        return "head scale"
    return ""


def _resnet(visual: ModifiedResNet, precision: torch.dtype | None, normalisation: dict[str, Tensor]) -> PooledTower:
    """CLIP's ResNets: the mean of the features asks all of them and itself."""
    attention = visual.attnpool
    trunk = private_copy(visual, precision)
    trunk.attnpool = nn.Identity()
    table = attention.positional_embedding.detach()
    side = math.isqrt(len(table) - 1)
    # The first convolution alone has a stride and a kernel that reaches to one side, see `Placement`; the grid is made
    # coarser by means of 2 x 2 pixels everywhere else.
    placement = Placement(stride_px=RESNET_STRIDE_PX, shift_px=-0.5)
    return PooledTower(
        kind="attention_pool",
        placement=placement,
        trunk=GridTrunk(
            body=trunk, positions=lambda grid_hw: vision.resize_positions(table, (side, side), grid_hw, "bilinear")
        ),
        pool=AttentionPool(
            heads=int(attention.num_heads),
            latent=None,
            others=1,
            q=linear(attention.q_proj, precision),
            k=linear(attention.k_proj, precision),
            v=linear(attention.v_proj, precision),
            out=linear(attention.c_proj, precision),
            finish=layers.NOTHING,
        ),
        dtype=precision or visual.conv1.weight.dtype,
        **normalisation,
    )


def _transformer(
    visual: VisionTransformer, precision: torch.dtype | None, normalisation: dict[str, Tensor]
) -> vision.VisionTower:
    """Transformers with a class token."""

    def cast(tensor: Tensor | None, own: torch.dtype = visual.conv1.weight.dtype) -> Any:
        return None if tensor is None else tensor.detach().to(precision or own)

    def norm(module: Any) -> layers.LayerNorm:
        if not isinstance(module, (LayerNorm, LayerNormFp32, nn.LayerNorm)):
            raise ConfigError(f"the image tower normalises with {type(module).__name__}. {SUPPORTED}")
        own = module.weight.dtype
        return layers.LayerNorm(cast(module.weight, own), cast(module.bias, own), module.eps)

    def product(module: Any) -> layers.Linear:
        return layers.Linear(cast(module.weight), cast(module.bias))

    def layer_scale(module: Any) -> Any:
        return cast(module.gamma) if isinstance(module, LayerScale) else None

    def block(module: Any) -> vision.Block:
        qkv = layers.Linear(cast(module.attn.in_proj_weight), cast(module.attn.in_proj_bias))
        width = qkv.weight.shape[1]
        kv = layers.Linear(qkv.weight[width:], None if qkv.bias is None else qkv.bias[width:])
        return vision.Block(
            heads=int(module.attn.num_heads),
            ln_1=norm(module.ln_1),
            qkv=qkv,
            kv=kv,
            out=product(module.attn.out_proj),
            ls_1=layer_scale(module.ls_1),
            ln_2=norm(module.ln_2),
            fc=product(module.mlp.c_fc),
            activation=module.mlp.gelu.forward,
            proj=product(module.mlp.c_proj),
            ls_2=layer_scale(module.ls_2),
        )

    return vision.VisionTower(
        patch_weight=cast(visual.conv1.weight),
        patch_bias=cast(visual.conv1.bias),
        class_token=cast(visual.class_embedding),
        position_embedding=cast(visual.positional_embedding),
        grid_hw=(int(visual.grid_size[0]), int(visual.grid_size[1])),
        ln_pre=None if isinstance(visual.ln_pre, nn.Identity) else norm(visual.ln_pre),
        blocks=tuple(block(module) for module in visual.transformer.resblocks),
        ln_post=norm(visual.ln_post),
        output=cast(visual.proj),
        **normalisation,
    )
