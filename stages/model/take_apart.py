"""An open_clip image tower taken apart into the tensors that explainers work on.

Only vision transformers with a class token can be explained; `check_supported` refuses all others and lists what is
supported.
"""

from __future__ import annotations

from typing import Any

import torch
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
from stages.model import vision
from stages.model.config import InputSpec

SUPPORTED = (
    "Supported: open_clip vision transformers with a class token (ViT-B-32, B-16, L-14, H-14, g-14, bigG-14 and "
    "their -quickgelu configurations, any size, patch and activation, LayerScale). Not supported: ResNets, "
    "timm towers, SigLIP and other models without a class token, CoCa and other attention poolers, "
    "and blocks with qk-norm, scaled cosine attention, head scale or inner norms."
)

Model = Any
"""An open_clip model or a part of one: open_clip is untyped."""


def check_supported(model: Model) -> None:
    """Raise ConfigError, which names the obstacle, if the image tower cannot be explained."""
    visual = getattr(model, "visual", None)
    if visual is None:
        raise ConfigError(f"a {type(model).__name__} is not an open_clip model. {SUPPORTED}")
    if not isinstance(visual, VisionTransformer):
        raise ConfigError(f"the image tower is a {type(visual).__name__}. {SUPPORTED}")
    if visual.attn_pool is not None:
        raise ConfigError(f"the image tower ends in an attention pooler. {SUPPORTED}")
    if visual.pool_type != "tok":
        raise ConfigError(f"the image tower pools by {visual.pool_type!r}, not by its class token. {SUPPORTED}")
    for block in visual.transformer.resblocks:
        obstacle = _obstacle(block)
        if obstacle:
            raise ConfigError(f"the image tower's blocks have {obstacle}. {SUPPORTED}")


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


def take_apart(visual: VisionTransformer, spec: InputSpec, precision: torch.dtype | None) -> vision.VisionTower:
    """Take the weights out of an image tower.

    Args:
        visual: the tower; it is only read.
        spec: what its input looks like.
        precision: of all weights. With None they keep the model's own: that of its matrices, except for layer norms,
            which keep theirs, since open_clip's half-precision models leave them in float32.

    Raises:
        ConfigError: the tower has an unknown normalisation.
    """

    def cast(tensor: Tensor | None, own: torch.dtype = visual.conv1.weight.dtype) -> Any:
        return None if tensor is None else tensor.detach().to(precision or own)

    def norm(module: Any) -> vision.LayerNorm:
        if not isinstance(module, (LayerNorm, LayerNormFp32, nn.LayerNorm)):
            raise ConfigError(f"the image tower normalises with {type(module).__name__}. {SUPPORTED}")
        own = module.weight.dtype
        return vision.LayerNorm(cast(module.weight, own), cast(module.bias, own), module.eps)

    def linear(module: Any) -> vision.Linear:
        return vision.Linear(cast(module.weight), cast(module.bias))

    def layer_scale(module: Any) -> Any:
        return cast(module.gamma) if isinstance(module, LayerScale) else None

    def block(module: Any) -> vision.Block:
        qkv = vision.Linear(cast(module.attn.in_proj_weight), cast(module.attn.in_proj_bias))
        width = qkv.weight.shape[1]
        kv = vision.Linear(qkv.weight[width:], None if qkv.bias is None else qkv.bias[width:])
        return vision.Block(
            heads=int(module.attn.num_heads),
            ln_1=norm(module.ln_1),
            qkv=qkv,
            kv=kv,
            out=linear(module.attn.out_proj),
            ls_1=layer_scale(module.ls_1),
            ln_2=norm(module.ln_2),
            fc=linear(module.mlp.c_fc),
            activation=module.mlp.gelu.forward,
            proj=linear(module.mlp.c_proj),
            ls_2=layer_scale(module.ls_2),
        )

    device = visual.class_embedding.device
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
        mean=torch.tensor(spec.mean, device=device),
        std=torch.tensor(spec.std, device=device),
    )
