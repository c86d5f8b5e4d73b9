"""Architecture and images of a model in open_clip's words, from the settings of `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from stages.contract.errors import ConfigError
from stages.shared.model.checkpoints.layouts import CLIP, SIGLIP

_BLOCK = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

_DEFAULTS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    CLIP: {
        "vision_config": {**_BLOCK, **_CLIP, "image_size": 224, "patch_size": 32},
        "text_config": {
            **_CLIP, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
            "max_position_embeddings": 77, "vocab_size": 49408,
        },
    },
    SIGLIP: {
        "vision_config": {
            **_BLOCK, **_SIGLIP, "image_size": 224, "patch_size": 16, "vision_use_head": True,
        },
        "text_config": {
            **_BLOCK, **_SIGLIP, "max_position_embeddings": 64, "vocab_size": 32000, "projection_size": None,
        },
    },
}  # fmt: skip
"""The keys that a `config.json` leaves out: the defaults of `transformers`' CLIPConfig and SiglipConfig."""

_TANH: Final = {"act_kwargs": {"approximate": "tanh"}}
_ACTIVATIONS: Final[dict[str, dict[str, Any]]] = {
    "quick_gelu": {"quick_gelu": True},
    "gelu": {},
    "gelu_pytorch_tanh": _TANH,
    "gelu_new": _TANH,
}
"""`hidden_act` -> the same for open_clip."""

RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}
"""`resample` of a `preprocessor_config.json`, a number of Pillow's -> interpolation."""

_EPS: Final = 1e-5  # what open_clip adds to the variance in layer norms by default


def architecture_of(settings: Mapping[str, Any], layout: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Translate the contents of a `config.json` of transformers; the layout is `CLIP` or `SIGLIP`.

    Return open_clip's `model_cfg`, and the arguments of a SigLIP's image tower, see `ModelDescription.siglip`. Raises
    ConfigError if a value makes no sense, or open_clip has no such model.
    """
    vision, text = (_section(settings, name, layout) for name in ("vision_config", "text_config"))
    acts = {vision["hidden_act"], text["hidden_act"]}
    if len(acts) > 1 or acts - _ACTIVATIONS.keys():
        raise ConfigError(
            f"hidden_act is {' and '.join(sorted(map(str, acts)))}: expected one of {', '.join(_ACTIVATIONS)}, "
            "the same in both towers"
        )
    act = _ACTIVATIONS[vision["hidden_act"]]
    text_cfg: dict[str, Any] = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        **_block_options(text, act),
    }
    common: dict[str, Any] = {"quick_gelu": "quick_gelu" in act}
    vision_cfg = {key: vision[key] for key in ("image_size", "patch_size")}
    if layout == CLIP:
        vision_cfg |= {
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "layers": vision["num_hidden_layers"],
            **_block_options(vision, act),
        }
        width = _number(settings.get("projection_dim", 512), "projection_dim")
        return {"embed_dim": width, **common, "vision_cfg": vision_cfg, "text_cfg": text_cfg}, None
    if not vision["vision_use_head"]:
        raise ConfigError("vision_use_head is false: its image tower gives no embedding that texts compare with")
    width = text["projection_size"] or text["hidden_size"]
    if width != vision["hidden_size"]:
        raise ConfigError(
            f"texts have embeddings of {width} numbers and images of {vision['hidden_size']}: expected as many"
        )
    siglip = {
        "img_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embed_dim": vision["hidden_size"],
        "depth": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "mlp_ratio": _mlp_ratio(vision),
        "act_layer": "gelu_tanh" if "act_kwargs" in act else vision["hidden_act"],
        "norm_eps": vision["layer_norm_eps"],
    }
    text_cfg |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    common |= {"init_logit_bias": -10, "custom_text": True}
    vision_cfg["pool_type"] = "map"
    return {"embed_dim": width, **common, "vision_cfg": vision_cfg, "text_cfg": text_cfg}, siglip


def preprocess_of(images: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Translate the contents of a `preprocessor_config.json` to open_clip's `preprocess_cfg`, without the size.

    Without contents the defaults of `transformers` hold. Raise ConfigError if a value cannot be used.
    """
    mean = images.get("image_mean")
    std = images.get("image_std")
    if images.get("do_normalize") is False:
        mean = [0.0] * 3
        std = [1.0] * 3
    factor = images.get("rescale_factor", 1 / 255)
    if images.get("do_rescale") is False or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ConfigError(f"its images are scaled by {factor}: expected colours from 0 to 1, a factor of 1/255")
    defaults = {"mean": [0.5] * 3, "std": [0.5] * 3} if layout == SIGLIP else {}
    channels = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    for key, value in channels.items():
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(part, int | float) for part in value)):
            raise ConfigError(f"image_{key} must be three numbers, got {value!r}")
    resample = images.get("resample", 3)
    if resample not in RESAMPLE:
        raise ConfigError(f"resample is {resample}: expected 2 (bilinear) or 3 (bicubic)")
    return {**defaults, **channels, "interpolation": RESAMPLE[resample]}


def _section(settings: Mapping[str, Any], name: str, layout: str) -> dict[str, Any]:
    defaults = _DEFAULTS[layout][name]
    section = {**defaults, **(settings.get(name) or {})}
    older = settings.get(f"{name}_dict")  # of files that transformers wrote before 4.27; it decides all it has
    if isinstance(older, Mapping):
        section |= {**defaults, **older}
    for key, default in defaults.items():
        if isinstance(default, int) and not isinstance(default, bool):
            _number(section[key], f"{name}.{key}")
    return section


def _number(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} must be a whole number above 0, got {value!r}")
    return value


def _block_options(section: Mapping[str, Any], act: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in act.items() if key == "act_kwargs"}
    if section["layer_norm_eps"] != _EPS:
        options["norm_kwargs"] = {"eps": section["layer_norm_eps"]}
    return {"mlp_ratio": _mlp_ratio(section), **options}


def _mlp_ratio(section: Mapping[str, Any]) -> float:
    """Return a ratio for which `int(width * ratio)` is the width inside the MLP, although products are rounded."""
    inner_width = section["intermediate_size"]
    width = section["hidden_size"]
    ratio = inner_width / width
    return float(ratio if int(width * ratio) == inner_width else (inner_width + 0.5) / width)
