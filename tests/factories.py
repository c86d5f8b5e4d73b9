"""Small things of the real kinds, for tests."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.model import convert_weights_to_lp
from timm.layers import AttentionPool2d, AttentionPoolLatent
from torch import nn

import tests.small_networks  # noqa: F401 - it names its networks to timm
from phrasebox.stages.model.config import InputSpec
from tests.build.datasets import Json

SPEC = InputSpec(
    size_px=32, patch_px=8, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
)


def tiny_architecture(**vision: Any) -> Json:
    """open_clip's configuration of a real but tiny CLIP: 4x4 patches, 4 blocks of width 64 with 4 heads."""
    return {
        "embed_dim": 48,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "layers": 4,
            "head_width": 16,
            **vision,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }


def tiny_clip(
    seed: int = 0,
    *,
    quick_gelu: bool = False,
    spread: float = 3.0,
    precision: torch.dtype | None = None,
    **vision: Any,
) -> nn.Module:
    """A randomly initialised open_clip model of the tiny architecture.

    With `precision` its weights are halved as `open_clip.create_model(precision="fp16")` does it: all but layer norms
    and embeddings.

    `spread` widens the attention's weights: at open_clip's initialisation all attention is nearly
    uniform, and a wrong formula would go unnoticed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**tiny_architecture(**vision), quick_gelu=quick_gelu, cast_dtype=precision)
        with torch.no_grad():
            for block in model.visual.transformer.resblocks:
                block.attn.in_proj_weight.mul_(spread)
                block.attn.in_proj_bias.normal_(0, 0.3)
                block.attn.out_proj.bias.normal_(0, 0.3)
                block.ln_1.weight.normal_(1, 0.2)
                block.ln_1.bias.normal_(0, 0.2)
                for scale in (block.ls_1, block.ls_2):
                    if hasattr(scale, "gamma"):
                        scale.gamma.uniform_(0.5, 1.5)
    if precision is not None:
        convert_weights_to_lp(model, dtype=precision)
    return model.eval()


def spread_batch_norms(module: nn.Module) -> None:
    """Give batch normalisation statistics and weights that do something, as training does."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(0, 0.2)
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)


def resnet_architecture(**vision: Any) -> Json:
    """open_clip's configuration of `tiny_resnet`."""
    sides = {"image_size": 128, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, **vision}
    return {**tiny_architecture(), "vision_cfg": sides}


def tiny_resnet(seed: int = 0, **vision: Any) -> nn.Module:
    """A randomly initialised CLIP ResNet for 128 px: 4 x 4 tokens of width 256 and 16 heads, small but real."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**resnet_architecture(**vision))
        with torch.no_grad():
            spread_batch_norms(model.visual)
            pool = model.visual.attnpool
            for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                linear.weight.mul_(3.0)
                linear.bias.normal_(0, 0.3)
            pool.positional_embedding.mul_(3.0)
    return model.eval()


def timm_architecture(name: str, pool: str, proj: str = "none", *, size_px: int) -> Json:
    """open_clip's configuration of `tiny_timm`."""
    sides = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size_px}
    architecture = {**tiny_architecture(), "vision_cfg": sides, "custom_text": True}
    if pool == "map" and proj == "none":
        architecture["embed_dim"] = 64  # the tower's own width
    return architecture


def tiny_timm(name: str, pool: str, proj: str = "none", *, size_px: int, seed: int = 0) -> nn.Module:
    """A randomly initialised CLIP whose image tower is one of timm's, with the widest attention that makes sense."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        architecture = timm_architecture(name, pool, proj, size_px=size_px)
        model = open_clip.CustomTextCLIP(
            **{key: value for key, value in architecture.items() if key != "custom_text"}
        )
        with torch.no_grad():
            spread_batch_norms(model.visual)
            for part in model.visual.modules():
                if isinstance(part, (AttentionPool2d, AttentionPoolLatent)):
                    _widen(part)
            if pool == "token":
                _widen(model.visual.trunk.blocks[-1].attn)
            if isinstance(model.visual.trunk.get_classifier(), nn.Linear):
                model.visual.trunk.get_classifier().weight.normal_(0, 0.2)
    return model.eval()


def _widen(pool: nn.Module) -> None:
    """Make attention far from uniform."""
    for name, parameter in pool.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
        elif "norm" not in name:
            parameter.mul_(3.0)
    if hasattr(pool, "latent"):
        pool.latent.normal_()


RESNET_SPEC = replace(SPEC, size_px=128, patch_px=32)
VIT_SPEC = replace(SPEC, size_px=160, patch_px=16)

TOWERS: dict[str, tuple[Callable[..., nn.Module], InputSpec]] = {
    "class token": (tiny_clip, SPEC),
    "ResNet": (tiny_resnet, RESNET_SPEC),
    "timm, positions": (partial(tiny_timm, "resnet10t", "abs_attn", "", size_px=128), RESNET_SPEC),
    "timm, SAME": (
        partial(tiny_timm, "tf_efficientnet_lite0", "abs_attn", "linear", size_px=128),
        RESNET_SPEC,
    ),
    "EVA02": (
        partial(tiny_timm, "eva02_tiny_patch14_224", "token", "", size_px=224),
        replace(SPEC, size_px=224, patch_px=14),
    ),
    "timm, class token": (partial(tiny_timm, "test_vit", "token", "", size_px=160), VIT_SPEC),
    "ConvNeXt": (partial(tiny_timm, "test_convnext", "", "mlp", size_px=128), RESNET_SPEC),
    "timm, averaged patches": (partial(tiny_timm, "test_vit", "avg", "linear", size_px=160), VIT_SPEC),
    "SigLIP": (partial(tiny_timm, "test_vit", "map", size_px=160), VIT_SPEC),
    "PE-Core": (
        partial(tiny_timm, "small_pe_core_patch16_64", "map", "", size_px=64),
        replace(SPEC, size_px=64, patch_px=16),
    ),
    "MobileCLIP 2, transformer": (
        partial(tiny_timm, "small_mci_64", "token", "", size_px=64),
        replace(SPEC, size_px=64, patch_px=16),
    ),
    "MobileCLIP 2, convolutions": (
        partial(tiny_timm, "small_fastvit", "avg", "", size_px=256),
        replace(SPEC, size_px=256, patch_px=64),
    ),
}
"""Every kind of tower as a small model, and what its images look like."""


def architecture_of(tower: str) -> Json:
    """open_clip's configuration of a model in `TOWERS`."""
    make = TOWERS[tower][0]
    if isinstance(make, partial):
        return timm_architecture(*make.args, **make.keywords)
    return tiny_architecture() if make is tiny_clip else resnet_architecture()
