"""Layouts of checkpoints: recognised by the names of their tensors, and renamed as open_clip's model has them.

open_clip and `transformers` compute the same. Names of parts differ, query, key and value have
one matrix in open_clip and three in transformers, and projections are transposed. The image
tower of a SigLIP is timm's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import Tensor

from phrasebox.stages.contract.errors import WeightsError

OPENAI: Final = "OpenAI's CLIP"
OPEN_CLIP: Final = "open_clip"
CLIP: Final = "transformers CLIPModel"
SIGLIP: Final = "transformers SiglipModel"

OPENAI_ONLY: Final = ("input_resolution", "context_length", "vocab_size")
"""Numbers that only OpenAI's own files have, by which they are recognised."""

_PATTERNS: Final = {
    CLIP: ("visual_projection.weight", "text_projection.weight", "vision_model.", "text_model."),
    SIGLIP: ("vision_model.head.probe", "text_model.head.weight"),
    OPENAI: ("input_resolution", "visual.", "token_embedding.weight"),
    OPEN_CLIP: ("visual.", "token_embedding.weight"),
}
"""Layout -> names of tensors that a checkpoint must have; a dot at the end means the beginning of a name.
The first fit counts. A custom text tower of open_clip has its embedding at
`text.token_embedding.weight` or below `text.transformer.`."""


def layout_of(names: Collection[str], path: object) -> str:
    """Return the layout of a checkpoint by the names of its tensors.

    Raise WeightsError if no layout fits; the message names `path`, the tensors in it and the
    expected ones.
    """

    def has(pattern: str) -> bool:
        if pattern == "token_embedding.weight":
            return pattern in names or any(name.startswith("text.") for name in names)
        return (
            any(name.startswith(pattern) for name in names) if pattern.endswith(".") else pattern in names
        )

    for layout, patterns in _PATTERNS.items():
        if all(map(has, patterns)):
            return layout
    raise WeightsError(
        f"{path} is no whole CLIP that is known: it has {len(names)} tensors, {', '.join(sorted(names)[:3])}, ...; "
        f"expected those of {', '.join(_PATTERNS)}, with adapters merged"
    )


_BLOCK_PARTS: Final = {
    "layer_norm1": ("ln_1.", "norm1."),
    "layer_norm2": ("ln_2.", "norm2."),
    "mlp.fc1": ("mlp.c_fc.", "mlp.fc1."),
    "mlp.fc2": ("mlp.c_proj.", "mlp.fc2."),
    "self_attn.out_proj": ("attn.out_proj.", "attn.proj."),
    "self_attn.qkv": ("attn.in_proj_", "attn.qkv."),
}
"""Part of a block -> how the names of its weight and bias begin in open_clip, and in timm.
`_join_qkv` makes `qkv`."""

_BLOCKS: Final = {
    (CLIP, "vision"): ("visual.transformer.resblocks", 0),
    (CLIP, "text"): ("transformer.resblocks", 0),
    (SIGLIP, "vision"): ("visual.trunk.blocks", 1),
    (SIGLIP, "text"): ("text.transformer.resblocks", 0),
}
"""Layout and tower -> prefix of its blocks, and naming of their parts (0: open_clip's, 1:
timm's)."""

_BLOCK_NAME: Final = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QUERY: Final = re.compile(r"(.+\.self_attn)\.q_proj\.(weight|bias)")

_NAMES: Final[dict[str, dict[str, str]]] = {
    CLIP: {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.": "visual.conv1.",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.": "visual.ln_pre.",
        "vision_model.post_layernorm.": "visual.ln_post.",
        "visual_projection.weight": "visual.proj",
        "text_model.embeddings.token_embedding.": "token_embedding.",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.": "ln_final.",
        "text_projection.weight": "text_projection",
    },
    SIGLIP: {
        "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
        "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
        "vision_model.post_layernorm.": "visual.trunk.norm.",
        "vision_model.head.probe": "visual.trunk.attn_pool.latent",
        "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
        "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
        "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
        "text_model.embeddings.token_embedding.": "text.token_embedding.",
        "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
        "text_model.final_layer_norm.": "text.ln_final.",
        "text_model.head.": "text.text_projection.",
    },
}
"""Layout -> name of a tensor, or with a dot at the end the beginning of names -> the same in
open_clip."""

_TRANSPOSED: Final = {"visual.proj", "text_projection"}


def convert_to_open_clip(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Give the tensors of a layout open_clip's names and shapes; unknown ones keep their names."""
    if layout not in (CLIP, SIGLIP):
        of_older_transformers = ("text.transformer.embeddings.position_ids",)
        unused = OPENAI_ONLY if layout == OPENAI else of_older_transformers
        return {name: value for name, value in state.items() if name not in unused}
    tensors: dict[str, Tensor] = {}
    for name, value in _join_qkv(state).items():
        if not name.endswith(
            ".position_ids"
        ):  # a row of numbers that older versions of transformers saved too
            target = _rename(name, layout)
            tensors[target] = value.T.contiguous() if target in _TRANSPOSED and value.ndim == 2 else value
    # timm has one more dimension of positions, and a projection of the query beside one of key
    # and value.
    if (positions := tensors.get("visual.trunk.pos_embed")) is not None and positions.ndim == 2:
        tensors["visual.trunk.pos_embed"] = positions[None]
    for kind in ("weight", "bias"):
        joint = tensors.pop(f"vision_model.head.attention.in_proj_{kind}", None)
        if joint is not None:
            width = joint.shape[0] // 3
            pool = "visual.trunk.attn_pool"
            tensors[f"{pool}.q.{kind}"] = joint[:width]
            tensors[f"{pool}.kv.{kind}"] = joint[width:]
    return tensors


def _rename(name: str, layout: str) -> str:
    block = _BLOCK_NAME.fullmatch(name)
    if block is not None:
        tower, number, part, kind = block.groups()
        prefix, naming = _BLOCKS[layout, tower]
        return f"{prefix}.{number}.{_BLOCK_PARTS[part][naming]}{kind}" if part in _BLOCK_PARTS else name
    for source, target in _NAMES[layout].items():
        if name == source or (source.endswith(".") and name.startswith(source)):
            return target + name.removeprefix(source)
    return name


def _join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join query, key and value of each attention to one tensor, `qkv`, in this order."""
    tensors = dict(state)
    for name in state:
        query = _QUERY.fullmatch(name)
        if query is None:
            continue
        attention, kind = query.groups()
        parts = [f"{attention}.{letter}_proj.{kind}" for letter in "qkv"]
        if all(part in state and state[part].shape == state[name].shape for part in parts):
            tensors[f"{attention}.qkv.{kind}"] = torch.cat([tensors.pop(part) for part in parts])
    return tensors
