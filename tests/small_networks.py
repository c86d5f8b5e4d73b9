"""Networks of timm that open_clip's models have and timm has in full size only, as small ones: it builds them by name.

Each has what tells its kind from others: PE-Core turns keys by their places and pools with a
query of its own, MobileCLIP 2 is a convolution network with LayerNorms or a transformer behind
convolutions.
"""

from functools import partial
from typing import Any

from timm.layers import LayerNorm, LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn


def _sides(size_px: int, **options: Any) -> dict[str, Any]:
    return {"input_size": (3, size_px, size_px), "num_classes": 48, **options}


default_cfgs = generate_default_cfgs(
    {
        "small_pe_core_patch16_64": _sides(64),
        "small_fastvit": _sides(256, pool_size=(4, 4)),
        "small_mci_64": _sides(64),
    }
)
"""Where `register_model` looks for the sizes of its networks."""


def _build(network: type[nn.Module], name: str, **options: Any) -> Any:
    return build_model_with_cfg(network, name, pretrained=False, **options)


def small_pe_core_patch16_64(pretrained: bool = False, **options: Any) -> nn.Module:
    """The options of `vit_pe_core_base_patch16_224`, but small."""
    return _build(
        Eva,
        "small_pe_core_patch16_64",
        img_size=64,
        patch_size=16,
        embed_dim=64,
        depth=3,
        num_heads=4,
        attn_type="rope",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        attn_pool_num_heads=4,
        attn_pool_mlp_ratio=4.0,
        norm_layer=partial(LayerNorm, eps=1e-5),
        **options,
    )


def small_fastvit(pretrained: bool = False, **options: Any) -> nn.Module:
    """The options of `fastvit_mci3`, of MobileCLIP2-S3, but small."""
    place = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    return _build(
        FastVit,
        "small_fastvit",
        layers=(1, 1, 1, 1, 1),
        embed_dims=(8, 16, 32, 32, 64),
        mlp_ratios=(2,) * 5,
        se_downsamples=(False,) * 5,
        downsamples=(False, True, True, True, True),
        pos_embs=(None, None, None, place, place),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention", "attention"),
        lkc_use_act=True,
        norm_layer=partial(LayerNorm2d, eps=1e-5),
        stem_use_scale_branch=False,
        layer_scale_init_value=0.5,
        **options,
    )


def small_mci_64(pretrained: bool = False, **options: Any) -> nn.Module:
    """The options of `vit_base_mci_224`, of MobileCLIP2-B, but small."""
    stem = ConvStem(
        channels=(16, 16, 64), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU
    )
    return _build(
        VisionTransformer,
        "small_mci_64",
        img_size=64,
        patch_size=1,
        embed_dim=64,
        depth=3,
        num_heads=4,
        no_embed_class=True,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        **options,
    )


for network in (small_pe_core_patch16_64, small_fastvit, small_mci_64):
    register_model(network)
