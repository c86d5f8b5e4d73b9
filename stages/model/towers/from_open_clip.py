"""Image towers, as explainers use them, from open_clip's.

Transformers become plain tensors. Of an image tower that one attention pools, the trunk is kept
as it is, as a copy with the same weights, and the pool becomes tensors. All other towers are
rejected, with the reason.

Training needs gradients, so a tower's results have those of the module's parameters. For none,
build the tower from a `private_copy` of the module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip import transformer
from torch import Tensor, nn

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json, Sides
from phrasebox.stages.model.towers import from_transformers, layers
from phrasebox.stages.model.towers.plan import RESNET_STRIDE_PX, SUPPORTED
from phrasebox.stages.model.towers.pooled import AttentionPool, AveragedTower, PooledTower
from phrasebox.stages.model.towers.tower import Placement, Tower
from phrasebox.stages.model.towers.trunk import BlockTrunk, GridTrunk, shared_copy
from phrasebox.stages.model.towers.vision import Block, VisionTower, resize_positions

Model = Any  # An open_clip model or a part of one: open_clip is untyped


def build_image_tower(visual: Model, mean: Sequence[float], std: Sequence[float]) -> Tower:
    """Build an image tower from open_clip's, which is only read.

    Raise ConfigError, with the reason, if it cannot be explained.

    `mean` and `std` are those of the RGB channels in 0-1, as the model was trained. The weights
    of a transformer get the precision of its matrices, except for layer norms, which
    open_clip's half-precision models leave in float32.
    """
    device = next(visual.parameters()).device
    normalisation: Json = {
        "mean": torch.tensor(mean, device=device),
        "std": torch.tensor(std, device=device),
    }
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        return _resnet(visual, normalisation)
    if isinstance(visual, open_clip.timm_model.TimmModel):
        from phrasebox.stages.model.towers import from_timm  # noqa: PLC0415 - timm's layers, for its towers alone

        return from_timm.build_tower(visual, normalisation)
    if isinstance(visual, from_transformers.ImagePart):
        return from_transformers.build_tower(visual, normalisation)
    if not isinstance(visual, transformer.VisionTransformer):
        raise ConfigError(f"the image tower is a {type(visual).__name__}. {SUPPORTED}")
    if visual.attn_pool is not None:
        raise ConfigError(f"the image tower ends in an attention pooler with many queries. {SUPPORTED}")
    if visual.pool_type not in ("tok", "avg"):
        raise ConfigError(
            f"the image tower pools by {visual.pool_type!r}, not by its class token. {SUPPORTED}"
        )
    weights = _Weights(visual.conv1.weight.dtype)
    tower = VisionTower(
        patch_weight=weights.cast(visual.conv1.weight),
        patch_bias=weights.cast(visual.conv1.bias),
        class_token=weights.cast(visual.class_embedding),
        position_embedding=weights.cast(visual.positional_embedding),
        grid_hw=(int(visual.grid_size[0]), int(visual.grid_size[1])),
        ln_pre=layers.NOTHING if isinstance(visual.ln_pre, nn.Identity) else weights.norm(visual.ln_pre),
        blocks=tuple(weights.block(module) for module in visual.transformer.resblocks),
        ln_post=weights.norm(visual.ln_post),
        output=weights.cast(visual.proj),
        **normalisation,
    )
    if visual.pool_type == "tok":
        return tower
    # The mean of the patches, as in CLIPA, with the norm before or after it.
    output = () if tower.output is None else (layers.Linear(tower.output.mT, None),)
    is_norm_last = visual.final_ln_after_pool
    return AveragedTower(
        placement=tower.placement,
        trunk=BlockTrunk(tower=tower, norm=layers.NOTHING if is_norm_last else tower.ln_post),
        finish=layers.Chain((tower.ln_post, *output) if is_norm_last else output),
        dtype=tower.dtype,
        mean=tower.mean,
        std=tower.std,
    )


def _resnet(visual: Model, normalisation: dict[str, Tensor]) -> PooledTower:
    """Build the tower of a ResNet of CLIP: the mean of the features asks all of them and itself."""
    attention = visual.attnpool
    trunk = shared_copy(visual)
    trunk.attnpool = nn.Identity()
    table = attention.positional_embedding
    side = math.isqrt(len(table) - 1)

    def positions(grid_hw: Sides) -> Tensor:
        return resize_positions(table, (side, side), grid_hw, "bilinear")

    # The first convolution alone has a stride and a kernel that reaches to one side, see
    # `Placement`; the grid is made coarser by means of 2 x 2 pixels everywhere else.
    placement = Placement(stride_px=RESNET_STRIDE_PX, shift_px=-0.5)
    projections = (getattr(attention, f"{name}_proj") for name in "qkvc")
    q, k, v, out = (layers.Linear(module.weight, module.bias) for module in projections)
    heads = int(attention.num_heads)
    return PooledTower(
        kind="attention_pool",
        placement=placement,
        trunk=GridTrunk(body=trunk, positions=positions),
        pool=AttentionPool(
            heads=heads, latent=None, prefix_tokens=1, q=q, k=k, v=v, out=out, finish=layers.NOTHING
        ),
        dtype=visual.conv1.weight.dtype,
        **normalisation,
    )


def block_of(module: Model, precision: torch.dtype) -> Block:
    """Read the weights of an attention block of open_clip, of images or texts. Raise ConfigError for another."""
    return _Weights(precision).block(module)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Reads the weights of a tower; the modules stay as they are."""

    precision: torch.dtype  # of all weights but layer norms, which keep their own

    def cast(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(self.precision)

    def norm(self, module: Any) -> layers.LayerNorm:
        if not isinstance(module, nn.LayerNorm):
            raise ConfigError(f"a tower normalises with {type(module).__name__}. {SUPPORTED}")
        return layers.LayerNorm(module.weight, module.bias, module.eps)

    def product(self, module: Any) -> layers.Linear:
        if not isinstance(module, nn.Linear):  # as PEFT's, whose `weight` is that before the tuning
            raise ConfigError(
                f"a tower has a {type(module).__module__}.{type(module).__name__}: merge adapters first "
                f"(merge_and_unload). {SUPPORTED}"
            )
        return layers.Linear(self.cast(module.weight), self.cast(module.bias))

    def scale(self, module: Any) -> Tensor | None:
        return self.cast(module.gamma) if isinstance(module, transformer.LayerScale) else None

    def block(self, module: Any) -> Block:
        if not isinstance(
            module, transformer.ResidualAttentionBlock
        ):  # options of others change the formula
            raise ConfigError(f"the tower's blocks are {type(module).__name__}s. {SUPPORTED}")
        return Block(
            heads=int(module.attn.num_heads),
            ln_1=self.norm(module.ln_1),
            qkv=layers.Linear(self.cast(module.attn.in_proj_weight), self.cast(module.attn.in_proj_bias)),
            out=self.product(module.attn.out_proj),
            ls_1=self.scale(module.ls_1),
            ln_2=self.norm(module.ln_2),
            fc=self.product(module.mlp.c_fc),
            activation=module.mlp.gelu.forward,
            proj=self.product(module.mlp.c_proj),
            ls_2=self.scale(module.ls_2),
        )
