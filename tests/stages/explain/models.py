"""Small models, images and explainers for the tests of heat maps."""

import functools
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import nn

from stages.explain import EXPLAINERS
from stages.shared.model.clip import ClipModel
from stages.shared.model.load import from_open_clip
from tests.build.datasets import Json
from tests.factories import SPEC, TOWERS, tiny_architecture

PHRASES = ["red car", "dog"]
DRAWN = torch.float32
"""The precision of random weights, which depend on it."""
tokenizer = open_clip.get_tokenizer("ViT-B-32")


def module_of(tower: str, **options: Any) -> nn.Module:
    """A model that no test changes, in torch's default precision."""
    return _module_of(tower, torch.get_default_dtype(), **options)


@functools.cache
def _module_of(tower: str, dtype: torch.dtype, /, **options: Any) -> nn.Module:
    torch.set_default_dtype(DRAWN)
    model = TOWERS[tower][0](**options)
    torch.set_default_dtype(dtype)
    return model.to(dtype)


def clip_of(model: nn.Module | str = "class token", **options: Any) -> ClipModel:
    """A model of `TOWERS` by name, with `options`, or any other model for images as those of the class token's."""
    if isinstance(model, str):
        return from_open_clip(module_of(model, **options), tokenizer, TOWERS[model][1])
    return from_open_clip(model, tokenizer, SPEC, **options)


def make_explainer(kind: str, model: ClipModel | nn.Module | str = "class token", **settings: Any) -> Any:
    """An explainer of a kind with settings, which gives the maps of its method alone if they do not say otherwise."""
    explainer = EXPLAINERS[kind]
    config = explainer.config_type(**{"affinity": "none", **settings})
    return explainer(config, model if isinstance(model, ClipModel) else clip_of(model))


def image(
    tower: str = "class token", rows: int = 4, columns: int = 4, count: int = 1, seed: int = 2
) -> NDArray[Any]:
    """Images of so many cells, uint8 (count, height, width, 3)."""
    stride = TOWERS[tower][1].patch_px
    return np.random.default_rng(seed).integers(
        0, 256, (count, rows * stride, columns * stride, 3), dtype=np.uint8
    )


def text_architecture(**text: Any) -> Json:
    """open_clip's configuration of a tiny CLIP with a text tower of 3 blocks of width 32 and 4 heads."""
    architecture = tiny_architecture(layers=1)
    architecture["text_cfg"] = {**architecture["text_cfg"], "layers": 3, "heads": 4, **text}
    return architecture


def sharp_text_clip(seed: int = 0, *, quick_gelu: bool = False, **text: Any) -> nn.Module:
    """A random model. At open_clip's initialisation attention is nearly uniform and a wrong formula goes unnoticed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**text_architecture(**text), quick_gelu=quick_gelu)
        with torch.no_grad():
            model.token_embedding.weight.normal_(0, 0.7)
            model.positional_embedding.normal_(0, 0.3)
            for block in model.transformer.resblocks:
                block.attn.in_proj_weight.mul_(3.0)
                block.attn.in_proj_bias.normal_(0, 0.3)
                block.attn.out_proj.weight.mul_(3.0)
                block.attn.out_proj.bias.normal_(0, 0.3)
                block.ln_1.weight.normal_(1, 0.2)
                block.ln_1.bias.normal_(0, 0.2)
    return model.eval()
