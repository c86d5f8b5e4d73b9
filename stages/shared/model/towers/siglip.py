"""The image tower of a SigLIP of any size, as open_clip holds it: timm's vision transformer with an attention pooler.

open_clip builds such towers by timm's names alone, and those have the exact GELU, where SigLIP was trained with its
approximation by tanh (big_vision, `flax.linen.gelu`), which is what `transformers` computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from stages.shared.model.deferred import open_clip

PLACEHOLDER: Final = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
"""`vision_cfg` of the smallest tower that open_clip can build, in whose place the real one is put."""

_ANY: Final = "vit_base_patch16_siglip_224"
"""One of timm's SigLIP towers, whose layers are never allocated."""


def image_tower(trunk: Mapping[str, Any], embed_dim: int) -> nn.Module:
    """Build the tower with random weights, on the device of the surrounding `torch.device`.

    Args:
        trunk: arguments of timm's `VisionTransformer`, and `norm_eps`.
        embed_dim: E.

    Returns:
        What open_clip builds for its own SigLIP models: a `TimmModel` whose `trunk` is the transformer.
    """
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415 - see `stages.shared.model.deferred`

    options = {key: value for key, value in trunk.items() if key != "norm_eps"}
    with torch.device("meta"):
        tower: nn.Module = open_clip.timm_model.TimmModel(
            _ANY, embed_dim, image_size=options["img_size"], pool="map", proj="none"
        )
    tower.trunk = VisionTransformer(
        **options,
        num_classes=0,
        global_pool="map",
        class_token=False,
        norm_layer=partial(nn.LayerNorm, eps=trunk["norm_eps"]),
    )
    return tower
