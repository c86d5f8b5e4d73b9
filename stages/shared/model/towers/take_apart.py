"""An open_clip image tower taken apart into what explainers work on.

Transformers with a class token become plain tensors. Of towers that one attention pools, the trunk is kept as it is, as
a copy with the same weights, and the pool becomes tensors. `check_supported` refuses all others.

What is computed with a tower has the gradients of the module's parameters, which is what training needs. Who wants none
takes a `private_copy` of the module apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.contract.errors import ConfigError
from stages.shared.model.deferred import open_clip
from stages.shared.model.towers import layers, vision
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.plan import RESNET_STRIDE_PX, SUPPORTED
from stages.shared.model.towers.pooled import AttentionPool, PooledTower
from stages.shared.model.towers.residual import WeightReader, obstacle_of
from stages.shared.model.towers.tower import Placement, Tower
from stages.shared.model.towers.trunk import BlockTrunk, GridTrunk, shared_copy

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
        visual: the tower. With a precision its trunk is converted; else it is only read.
        mean: of the RGB channels in 0-1, as the model was trained.
        std: their standard deviation.
        precision: of all weights. With None they keep the model's own: that of its matrices, except for layer norms,
            which keep theirs, since open_clip's half-precision models leave them in float32.

    Raises:
        ConfigError: the tower cannot be explained, and why.
    """
    device = next(visual.parameters()).device
    normalisation = {"mean": torch.tensor(mean, device=device), "std": torch.tensor(std, device=device)}
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        return _resnet(visual, precision, normalisation)
    if isinstance(visual, open_clip.timm_model.TimmModel):
        from stages.shared.model.towers import take_apart_timm  # noqa: PLC0415 - see `stages.shared.model.deferred`

        return take_apart_timm.take_apart(visual, precision, normalisation)
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise ConfigError(f"the image tower is a {type(visual).__name__}. {SUPPORTED}")
    if visual.attn_pool is not None:
        raise ConfigError(f"the image tower ends in an attention pooler with many queries. {SUPPORTED}")
    if visual.pool_type not in ("tok", "avg"):
        raise ConfigError(f"the image tower pools by {visual.pool_type!r}, not by its class token. {SUPPORTED}")
    for block in visual.transformer.resblocks:
        obstacle = obstacle_of(block)
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


def _resnet(
    visual: open_clip.modified_resnet.ModifiedResNet, precision: torch.dtype | None, normalisation: dict[str, Tensor]
) -> PooledTower:
    """CLIP's ResNets: the mean of the features asks all of them and itself."""
    attention = visual.attnpool
    trunk = shared_copy(visual).to(precision)
    trunk.attnpool = nn.Identity()
    table = attention.positional_embedding
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
            q=layers.linear(attention.q_proj, precision),
            k=layers.linear(attention.k_proj, precision),
            v=layers.linear(attention.v_proj, precision),
            out=layers.linear(attention.c_proj, precision),
            finish=layers.NOTHING,
        ),
        dtype=precision or visual.conv1.weight.dtype,
        **normalisation,
    )


def _transformer(
    visual: open_clip.transformer.VisionTransformer, precision: torch.dtype | None, normalisation: dict[str, Tensor]
) -> vision.VisionTower:
    """Transformers with a class token."""

    weights = WeightReader(precision, visual.conv1.weight.dtype, "the image tower", SUPPORTED)
    return vision.VisionTower(
        patch_weight=weights.cast(visual.conv1.weight),
        patch_bias=weights.cast(visual.conv1.bias),
        class_token=weights.cast(visual.class_embedding),
        position_embedding=weights.cast(visual.positional_embedding),
        grid_hw=(int(visual.grid_size[0]), int(visual.grid_size[1])),
        ln_pre=None if isinstance(visual.ln_pre, nn.Identity) else weights.norm(visual.ln_pre),
        blocks=tuple(weights.block(module) for module in visual.transformer.resblocks),
        ln_post=weights.norm(visual.ln_post),
        output=weights.cast(visual.proj),
        **normalisation,
    )
