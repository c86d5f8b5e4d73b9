"""The kind of an image tower, decided from open_clip's configuration of it: nothing is built, nothing is read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from pydantic import ValidationError

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json, Sides
from phrasebox.stages.model.config import InputSpec, TowerKind

RESNET_STRIDE_PX: Final = 32  # of the tokens of CLIP's ResNets: five halvings

SUPPORTED: Final = (
    "Supported: open_clip vision transformers with a class token (ViT-B-32, B-16, L-14, H-14, "
    "g-14, bigG-14 and their -quickgelu configurations, any size, patch and activation, "
    "LayerScale), CLIP's ResNets, SigLIP, EVA02, and timm towers that pool by attention, a class "
    "token or the mean. `phrasebox models` lists every name with what fits it"
)

_POOLS: Final[dict[str, TowerKind]] = {"tok": "class_token", "avg": "average_pool", "map": "latent_pool"}
"""`pool_type` of a transformer; `map` is that of a SigLIP, see `ModelDescription.siglip`."""

_TIMM_POOLS: Final[dict[str, TowerKind]] = {
    **dict.fromkeys(("abs_attn", "token"), "attention_pool"),
    "map": "latent_pool",
    "avg": "average_pool",
}
"""`timm_pool` of a network of timm."""

_AVERAGING: Final = re.compile(r"^vitamin_|_gap_")
"""Transformers of timm that average their tokens by default; its convolutional networks all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerPlan:
    """An image tower before it is built: its square images have `size_px`, its tokens are `stride_px` apart."""

    kind: TowerKind
    size_px: int
    stride_px: int

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.size_px // self.stride_px


def plan_of(architecture: Json) -> TowerPlan:
    """Plan the image tower of an open_clip configuration. Raise ConfigError, with the reason, if it does not fit.

    Options of a transformer that change the formulas show when it is built, see `from_open_clip`.
    """
    vision = architecture["vision_cfg"]
    if "multimodal_cfg" in architecture:
        raise _unsupported("is CoCa's, which ends in an attention pooler with many queries")
    size, stride = sides_px(vision)
    pool = vision.get("pool_type", "tok")
    kind: TowerKind | None = vision.get("kind", _POOLS.get(pool))  # of a dual encoder, which says it
    if "timm_model_name" in vision:
        kind = _kind_of_timm(vision)
    elif isinstance(vision.get("layers"), (list, tuple)):
        kind = "attention_pool"
    if kind is None:
        raise _unsupported(f"pools by {pool!r}, and not by its class token or the mean")
    return TowerPlan(kind=kind, size_px=size, stride_px=stride)


def sides_px(vision: Json) -> Sides:
    """Return the sides of images and patches of open_clip's `vision_cfg`. Raise ConfigError if they make no sense."""
    size = _side(vision.get("image_size", 224))
    if "timm_model_name" in vision:
        stride = _stride_of_timm(str(vision["timm_model_name"]))
        return size // stride * stride, stride  # timm leaves out pixels that do not fill a patch
    if isinstance(vision.get("layers"), (list, tuple)):
        return size, RESNET_STRIDE_PX
    return size, _side(vision.get("patch_size", 16))


def input_of(preprocess: Json, size_px: int, patch_px: int) -> InputSpec:
    """Return the input that open_clip's `preprocess_cfg` describes, for images and patches of these sides.

    Raise ConfigError if a value makes no sense.
    """
    try:
        return InputSpec(
            size_px=size_px,
            patch_px=patch_px,
            mean=preprocess.get("mean") or OPENAI_DATASET_MEAN,
            std=preprocess.get("std") or OPENAI_DATASET_STD,
            interpolation=preprocess.get("interpolation") or "bicubic",
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(
            f"the images' {problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}"
        ) from error


def _side(sides: Any) -> int:
    """Return the side of a square, of which open_clip's configurations give one side or both."""
    side = sides[0] if isinstance(sides, (list, tuple)) and len({*sides}) == 1 else sides
    if not isinstance(side, int) or side < 1:
        raise ConfigError(
            f"image_size or patch_size is {sides}: only squares of whole pixels are supported"
        )
    return side


def _import_timm() -> Any:
    """Import timm, and register our own trunk with it. Only towers of timm wait for the import."""
    import timm  # noqa: PLC0415

    import phrasebox.stages.model.towers.photo_trunk  # noqa: F401, PLC0415

    return timm


def _kind_of_timm(vision: Json) -> TowerKind:
    timm = _import_timm()
    name = str(vision["timm_model_name"])
    pool = vision.get("timm_pool", "avg")
    if not timm.is_model(name):  # also `hf-hub:` and `local-dir:`, under which timm loads any configuration
        raise _unsupported(f"is called {name!r}, which is no model of timm")
    if name.startswith("swin"):
        raise _unsupported("is a Swin, whose windows do not fit images of other sizes")
    if pool in _TIMM_POOLS:
        return _TIMM_POOLS[pool]
    timm_config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if not pool and (timm_config.pool_size is not None or _AVERAGING.search(name)):
        return "average_pool"
    raise _unsupported(
        f"is timm's {name} " + (f"with the pooling {pool!r}" if pool else "without a pooling that is known")
    )


def _stride_of_timm(name: str) -> int:
    """Return the pixels between the tokens of a timm model, from its name or its last grid."""
    patch = re.search(r"_patch(\d+)_", name)
    if patch:
        return int(patch[1])
    timm = _import_timm()
    timm_config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    if timm_config is None or timm_config.pool_size is None:
        return 16
    return 1 << math.ceil(math.log2(timm_config.input_size[-1] / timm_config.pool_size[-1]))


def _unsupported(obstacle: str) -> ConfigError:
    return ConfigError(f"the image tower {obstacle}. {SUPPORTED}")
