"""Small models, images and explainers for the tests of heat maps."""

import functools
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import nn

from phrasebox.stages.explain import EXPLAINERS
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.load import from_open_clip
from tests.factories import SPEC, TOWERS

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
        return _clip_of(model, torch.get_default_dtype(), **options)
    return from_open_clip(model, tokenizer, SPEC, **options)


@functools.cache
def _clip_of(tower: str, dtype: torch.dtype, /, **options: Any) -> ClipModel:
    """Explainers only read it, which `tests/contracts/test_explainers.py` asserts."""
    return from_open_clip(_module_of(tower, dtype, **options), tokenizer, TOWERS[tower][1])


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
