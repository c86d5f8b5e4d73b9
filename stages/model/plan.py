"""What an image tower is, decided from open_clip's configuration of it: nothing is built, nothing is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from stages.contract.errors import ConfigError
from stages.model.config import TowerKind

RESNET_STRIDE_PX: Final = 32
"""Pixels between the tokens of CLIP's ResNets: five halvings."""

SUPPORTED: Final = (
    "Supported: open_clip vision transformers with a class token (ViT-B-32, B-16, L-14, H-14, g-14, bigG-14 and "
    "their -quickgelu configurations, any size, patch and activation, LayerScale), and CLIP's ResNets. "
    "`phrasebox models` lists every name with what fits it"
)

_OBSTACLES: Final = {
    "attentional_pool": "ends in an attention pooler with many queries",
    "qk_norm": "has blocks with qk-norm",
    "scaled_cosine_attn": "has blocks with scaled cosine attention",
    "scale_heads": "has blocks with head scale",
    "scale_attn_inner": "has blocks with an inner norm",
    "scale_attn": "has blocks with an attention norm",
    "scale_fc": "has blocks with an MLP norm",
}
"""Options of open_clip's transformers that change the formulas -> what they do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerPlan:
    """An image tower before it is built.

    Attributes:
        kind: how its tokens become one embedding.
        size_px: side of the square images that it takes.
        stride_px: pixels between its tokens.
    """

    kind: TowerKind
    size_px: int
    stride_px: int

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.size_px // self.stride_px


def plan_of(architecture: dict[str, Any]) -> TowerPlan:
    """What the image tower of an open_clip configuration is.

    Raises:
        ConfigError: It cannot be explained, and why; or its sizes make no sense.
    """
    vision = architecture["vision_cfg"]
    if "multimodal_cfg" in architecture:
        raise _refused("is CoCa's, which ends in an attention pooler with many queries")
    if "timm_model_name" in vision or "siglip_trunk" in architecture:
        raise _refused("is a timm tower")
    size, stride = sides_px(vision)
    if isinstance(vision.get("layers"), (list, tuple)):
        return TowerPlan(kind="attention_pool", size_px=size, stride_px=stride)
    for option, what in _OBSTACLES.items():
        if vision.get(option):
            raise _refused(what)
    pool = vision.get("pool_type", "tok")
    if pool != "tok":
        raise _refused(f"pools by {pool!r}, not by its class token")
    return TowerPlan(kind="class_token", size_px=size, stride_px=stride)


def sides_px(vision: dict[str, Any]) -> tuple[int, int]:
    """Side of the images and of the patches, from open_clip's `vision_cfg`.

    Raises:
        ConfigError: A value makes no sense, or image or patch is not square.
    """
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    if isinstance(size, (list, tuple)):
        if len(set(size)) != 1:
            raise ConfigError(f"the model's input is {size[1]}x{size[0]}; only square inputs are supported")
        size = size[0]
    if isinstance(vision.get("layers"), (list, tuple)):
        patch = RESNET_STRIDE_PX
    if isinstance(patch, (list, tuple)):
        if len(set(patch)) != 1:
            raise ConfigError("only square patches are supported")
        patch = patch[0]
    if not (isinstance(size, int) and size > 0 and isinstance(patch or 1, int)):
        raise ConfigError(
            f"model.config: image_size and patch_size must be whole numbers above 0, got {size} and {patch}"
        )
    return size, patch or 1


def _refused(what: str) -> ConfigError:
    return ConfigError(f"the image tower {what}. {SUPPORTED}")
