"""What a checkpoint's tensors say of its architecture, where no file beside it describes it.

Shapes tell sizes and counts. They tell neither how many heads share a width, which is 64 numbers a head in all of
OpenAI's and most of open_clip's models, nor the activation: QuickGELU in OpenAI's, either in open_clip's.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import torch

from stages.contract.errors import WeightsError
from stages.shared.model.checkpoints import from_transformers
from stages.shared.model.checkpoints.state import Shapes
from stages.shared.model.deferred import open_clip

_HEAD_WIDTH: Final = 64

_SIGLIP_HEADS: Final = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Width of a tower -> heads, of all SigLIP and SigLIP 2 models that Google released."""


def architecture_of(shapes: Shapes) -> dict[str, Any]:
    """open_clip's `model_cfg` of a CLIP with a vision transformer or a ResNet, but for its activation.

    Args:
        shapes: of tensors with open_clip's names.

    Raises:
        WeightsError: a tensor that tells a size is missing, or the sizes contradict each other.
    """
    try:
        text = {name.removeprefix("text."): shape for name, shape in shapes.items() if not name.startswith("visual.")}
        width = text["ln_final.weight"][0]
        return {
            "embed_dim": text["text_projection"][1],
            "vision_cfg": _vit(shapes) if "visual.proj" in shapes else _resnet(shapes),
            "text_cfg": {
                "context_length": text["positional_embedding"][0],
                "vocab_size": text["token_embedding.weight"][0],
                "width": width,
                "heads": max(1, width // _HEAD_WIDTH),
                "layers": _count(text, r"transformer\.resblocks\.(\d+)\."),
            },
        }
    except (LookupError, ArithmeticError) as error:
        raise WeightsError(f"the tensors do not tell the architecture: {type(error).__name__}: {error}") from error


def _vit(shapes: Shapes) -> dict[str, Any]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = _side(shapes["visual.positional_embedding"][0] - 1)
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "layers": _count(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
    }


def _resnet(shapes: Shapes) -> dict[str, Any]:
    return {
        "image_size": 32 * _side(shapes["visual.attnpool.positional_embedding"][0] - 1),
        "patch_size": None,
        "width": shapes["visual.layer1.0.conv1.weight"][0],
        "layers": [_count(shapes, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)],
    }


def siglip_settings(shapes: Shapes) -> dict[str, Any]:
    """What a `config.json` would say of a SigLIP.

    Args:
        shapes: of tensors with the names of `transformers`.

    Raises:
        WeightsError: no SigLIP of these sizes is known.
    """
    try:
        towers = {
            f"{tower}_config": {
                "hidden_size": shapes[f"{tower}_model.{layer}.weight"][0],
                "intermediate_size": shapes[f"{tower}_model.encoder.layers.0.mlp.fc1.weight"][0],
                "num_hidden_layers": _count(shapes, rf"{tower}_model\.encoder\.layers\.(\d+)\."),
                "num_attention_heads": _SIGLIP_HEADS[shapes[f"{tower}_model.{layer}.weight"][0]],
            }
            for tower, layer in (("vision", "post_layernorm"), ("text", "final_layer_norm"))
        }
        patch = shapes["vision_model.embeddings.patch_embedding.weight"][-1]
        towers["vision_config"] |= {
            "patch_size": patch,
            "image_size": patch * _side(shapes["vision_model.embeddings.position_embedding.weight"][0]),
        }
        towers["text_config"] |= {
            "vocab_size": shapes["text_model.embeddings.token_embedding.weight"][0],
            "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
            "projection_size": shapes["text_model.head.weight"][0],
        }
    except (LookupError, ArithmeticError) as error:
        raise WeightsError(
            f"the tensors are of no SigLIP that is known ({type(error).__name__}: {error}): put its config.json beside "
            "them"
        ) from error
    return towers


def names_of(architecture: dict[str, Any]) -> list[str]:
    """Names of open_clip's models that have these sizes; they can differ in what shapes do not tell."""
    wanted = _sizes(architecture)
    found = []
    for name in open_clip.list_models():
        other = open_clip.get_model_config(name)
        plain = "timm_model_name" not in other["vision_cfg"] and "hf_model_name" not in other["text_cfg"]
        if plain and "multimodal_cfg" not in other and _sizes(other) == wanted:
            found.append(name)
    return found


def _sizes(architecture: dict[str, Any]) -> tuple[Any, ...]:
    vision, text = (
        {**defaults, **architecture[section]}
        for section, defaults in (
            ("vision_cfg", {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}),
            ("text_cfg", {"context_length": 77, "vocab_size": 49408, "width": 512, "layers": 12}),
        )
    )
    patch = None if isinstance(vision["layers"], list) else vision["patch_size"]
    sides = (vision["image_size"], patch, vision["width"], vision["layers"])
    return (
        architecture["embed_dim"],
        *sides,
        *(text[key] for key in ("context_length", "vocab_size", "width", "layers")),
    )


def renamed(shapes: Shapes, layout: str) -> Shapes:
    """Shapes of a `transformers` checkpoint by open_clip's names."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: tuple(value.shape) for name, value in from_transformers.renamed(empty, layout).items()}


def _side(places: int) -> int:
    """Side of a square grid with this number of places. Raises ArithmeticError if no grid has it."""
    side = math.isqrt(max(places, 0))
    if side < 1 or side**2 != places:
        raise ArithmeticError(f"{places} places make no square grid")
    return side


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand at a place in names. Raises LookupError for none."""
    numbers = {match[1] for name in shapes if (match := re.match(pattern, name))}
    if not numbers:
        raise LookupError(pattern.replace("\\", ""))
    return len(numbers)
