"""Checkpoints of `transformers`: its `CLIPModel` and `SiglipModel` in open_clip's words. `transformers` is not needed.

Both libraries compute the same; what differs is how parts are called, that query, key and value have a matrix each
there and one together here, and that projections are transposed. `architecture_of` turns a `config.json` into
open_clip's `model_cfg`, and `renamed` the tensors. The image tower of a SigLIP is timm's, see `siglip`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from stages.contract.errors import ConfigError

CLIP: Final = "transformers CLIPModel"
SIGLIP: Final = "transformers SiglipModel"

MODEL_TYPES: Final = {"clip": CLIP, "siglip": SIGLIP}
"""`model_type` of a `config.json` -> layout."""

_BLOCK = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

_DEFAULTS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    CLIP: {
        "vision_config": {**_BLOCK, **_CLIP, "image_size": 224, "patch_size": 32, "num_channels": 3},
        "text_config": {
            **_CLIP, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
            "max_position_embeddings": 77, "vocab_size": 49408,
        },
    },
    SIGLIP: {
        "vision_config": {
            **_BLOCK, **_SIGLIP, "image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True,
        },
        "text_config": {
            **_BLOCK, **_SIGLIP, "max_position_embeddings": 64, "vocab_size": 32000, "projection_size": None,
        },
    },
}  # fmt: skip
"""What a `config.json` leaves out: the defaults of `transformers`' CLIPConfig and SiglipConfig."""

_ACTIVATIONS: Final[dict[str, dict[str, Any]]] = {
    "quick_gelu": {"quick_gelu": True},
    "gelu": {},
    "gelu_pytorch_tanh": {"act_kwargs": {"approximate": "tanh"}},
    "gelu_new": {"act_kwargs": {"approximate": "tanh"}},
}
"""`hidden_act` -> how open_clip is told."""

RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}
"""`resample` of a `preprocessor_config.json`, a number of Pillow's -> interpolation."""

_EPS: Final = 1e-5
"""Of layer norms, where open_clip is not told."""


def architecture_of(settings: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a `config.json`.

    Args:
        settings: what the file holds.
        layout: `CLIP` or `SIGLIP`.

    Raises:
        ConfigError: a value makes no sense, or open_clip has no such model.
    """
    vision, text = (_section(settings, name, layout) for name in ("vision_config", "text_config"))
    acts = {vision["hidden_act"], text["hidden_act"]}
    unknown = acts - _ACTIVATIONS.keys()
    if unknown or len(acts) > 1:
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
    if layout == SIGLIP:
        if not vision["vision_use_head"]:
            raise ConfigError("vision_use_head is false: its image tower gives no embedding that texts compare with")
        width = text["projection_size"] or text["hidden_size"]
        if width != vision["hidden_size"]:
            raise ConfigError(
                f"texts have embeddings of {width} numbers and images of {vision['hidden_size']}: expected as many"
            )
        trunk = {
            "img_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "embed_dim": vision["hidden_size"],
            "depth": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "mlp_ratio": _mlp_ratio(vision),
            "act_layer": {"gelu": "gelu", "quick_gelu": "quick_gelu"}.get(vision["hidden_act"], "gelu_tanh"),
            "norm_eps": vision["layer_norm_eps"],
        }
        return {
            "embed_dim": width,
            "init_logit_bias": -10,
            "custom_text": True,
            "quick_gelu": "quick_gelu" in act,
            "vision_cfg": {key: vision[key] for key in ("image_size", "patch_size")},
            "siglip_trunk": trunk,
            "text_cfg": {**text_cfg, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        }
    heads = vision["num_attention_heads"]
    return {
        "embed_dim": _number(settings.get("projection_dim", 512), "projection_dim"),
        "quick_gelu": "quick_gelu" in act,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // heads,
            "layers": vision["num_hidden_layers"],
            **_block_options(vision, act),
        },
        "text_cfg": text_cfg,
    }


def preprocess_of(images: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of a `preprocessor_config.json`.

    The size of the images is the model's: its position embedding has no other.

    Args:
        images: what the file holds; empty for the defaults of `transformers`.
        layout: `CLIP` or `SIGLIP`.

    Raises:
        ConfigError: a value cannot be used.
    """
    mean, std = images.get("image_mean"), images.get("image_std")
    if images.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    factor = images.get("rescale_factor", 1 / 255)
    if images.get("do_rescale") is False or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ConfigError(f"its images are scaled by {factor}: expected colours from 0 to 1, a factor of 1/255")
    usual = {"mean": [0.5] * 3, "std": [0.5] * 3} if layout == SIGLIP else {}
    found = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    for key, value in found.items():
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(each, int | float) for each in value)):
            raise ConfigError(f"image_{key} must be three numbers, got {value!r}")
    resample = images.get("resample", 3)
    if resample not in RESAMPLE:
        raise ConfigError(f"resample is {resample}: expected 2 (bilinear) or 3 (bicubic)")
    return {**usual, **found, "interpolation": RESAMPLE[resample]}


def _section(settings: Mapping[str, Any], name: str, layout: str) -> dict[str, Any]:
    """The settings of a tower, with what the file leaves out."""
    defaults = _DEFAULTS[layout][name]
    section = {**defaults, **(settings.get(name) or {})}
    older = settings.get(f"{name}_dict")  # of files that transformers wrote before 4.27; it decides all it has
    if isinstance(older, Mapping):
        section |= {**defaults, **older}
    for key, default in defaults.items():
        if isinstance(default, int) and not isinstance(default, bool):
            _number(section[key], f"{name}.{key}")
    if section["hidden_size"] % section["num_attention_heads"]:
        raise ConfigError(
            f"{name}: {section['hidden_size']} cannot be shared among {section['num_attention_heads']} heads"
        )
    if section.get("num_channels", 3) != 3:
        raise ConfigError(f"{name}.num_channels is {section['num_channels']}: expected images of 3 channels")
    return section


def _number(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} must be a whole number above 0, got {value!r}")
    return value


def _block_options(section: Mapping[str, Any], act: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"mlp_ratio": _mlp_ratio(section)}
    if "act_kwargs" in act:
        options["act_kwargs"] = act["act_kwargs"]
    if section["layer_norm_eps"] != _EPS:
        options["norm_kwargs"] = {"eps": section["layer_norm_eps"]}
    return options


def _mlp_ratio(section: Mapping[str, Any]) -> float:
    """The ratio for which `int(width * ratio)` is the width inside the MLP, although a product may be a bit less."""
    inside, width = section["intermediate_size"], section["hidden_size"]
    return float(inside / width if int(width * (inside / width)) == inside else (inside + 0.5) / width)


_BLOCK_PARTS: Final = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.qkv": "attn.in_proj",
}
"""Part of a block -> its name in open_clip. `qkv` is made of three by `_joined`."""

_TIMM_PARTS: Final = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "attn.proj",
    "self_attn.qkv": "attn.qkv",
}
"""The same in timm."""

_CLIP_NAMES: Final = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}

_TRANSPOSED: Final = {"visual.proj", "text_projection"}

_POOL: Final = "visual.trunk.attn_pool"

_SIGLIP_NAMES: Final = {
    "vision_model.embeddings.patch_embedding.weight": "visual.trunk.patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.bias": "visual.trunk.patch_embed.proj.bias",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.weight": "visual.trunk.norm.weight",
    "vision_model.post_layernorm.bias": "visual.trunk.norm.bias",
    "vision_model.head.probe": f"{_POOL}.latent",
    "vision_model.head.attention.out_proj.weight": f"{_POOL}.proj.weight",
    "vision_model.head.attention.out_proj.bias": f"{_POOL}.proj.bias",
    "vision_model.head.layernorm.weight": f"{_POOL}.norm.weight",
    "vision_model.head.layernorm.bias": f"{_POOL}.norm.bias",
    "vision_model.head.mlp.fc1.weight": f"{_POOL}.mlp.fc1.weight",
    "vision_model.head.mlp.fc1.bias": f"{_POOL}.mlp.fc1.bias",
    "vision_model.head.mlp.fc2.weight": f"{_POOL}.mlp.fc2.weight",
    "vision_model.head.mlp.fc2.bias": f"{_POOL}.mlp.fc2.bias",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.weight": "text.ln_final.weight",
    "text_model.final_layer_norm.bias": "text.ln_final.bias",
    "text_model.head.weight": "text.text_projection.weight",
    "text_model.head.bias": "text.text_projection.bias",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}

_BLOCK_NAME: Final = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")

_QUERY: Final = re.compile(r"(.+\.self_attn)\.q_proj\.(weight|bias)")


def renamed(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The tensors with open_clip's names and in its shapes; those that it does not know keep their names.

    Args:
        state: tensors as `transformers` saves them.
        layout: `CLIP` or `SIGLIP`.
    """
    names = _CLIP_NAMES if layout == CLIP else _SIGLIP_NAMES
    vision = ("visual.transformer.resblocks", _BLOCK_PARTS) if layout == CLIP else ("visual.trunk.blocks", _TIMM_PARTS)
    text = ("transformer.resblocks" if layout == CLIP else "text.transformer.resblocks", _BLOCK_PARTS)
    towers = {"vision": vision, "text": text}
    found: dict[str, Tensor] = {}
    for name, value in _joined(state).items():
        if name.endswith(".position_ids"):  # a row of numbers that older versions of transformers saved too
            continue
        block = _BLOCK_NAME.fullmatch(name)
        if block is not None:
            tower, number, part, kind = block.groups()
            place, parts = towers[tower]
            if part in parts:
                joint = "_" if parts[part] == "attn.in_proj" else "."
                found[f"{place}.{number}.{parts[part]}{joint}{kind}"] = value
                continue
        own = names.get(name, name)
        found[own] = value.T.contiguous() if own in _TRANSPOSED and value.ndim == 2 else value
    if layout == SIGLIP:
        _shape_pool(found)
    return found


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of each attention as one tensor, `qkv`, in this order."""
    joined = dict(state)
    for name in state:
        query = _QUERY.fullmatch(name)
        if query is None:
            continue
        attention, kind = query.groups()
        parts = [f"{attention}.{letter}_proj.{kind}" for letter in "qkv"]
        if all(part in state and state[part].shape == state[name].shape for part in parts):
            joined[f"{attention}.qkv.{kind}"] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _shape_pool(found: dict[str, Tensor]) -> None:
    """The pooling attention of a SigLIP as timm holds it: the query's projection apart from that of key and value."""
    if (positions := found.get("visual.trunk.pos_embed")) is not None and positions.ndim == 2:
        found["visual.trunk.pos_embed"] = positions[None]
    for kind in ("weight", "bias"):
        value = found.pop(f"vision_model.head.attention.in_proj_{kind}", None)
        if value is not None:
            width = value.shape[0] // 3
            found[f"{_POOL}.q.{kind}"], found[f"{_POOL}.kv.{kind}"] = value[:width], value[width:]
