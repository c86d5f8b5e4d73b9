"""A tower with other weights, from the top down: the sanity check of Adebayo et al. (NeurIPS 2018, arXiv 1810.03292).

A map that explains a model changes when the model's weights do. The paper re-initialises layer after layer, from the
output on. Here the numbers of every weight are shuffled among each other, which keeps their spread and so the scale of
what the layers give; and there are two steps instead of one for each layer:

head   what makes the embedding of the tokens: the last block of a transformer and all behind it, the pool, or the head
all    every weight of the image tower

The text tower stays as it is. Stored statistics of batch normalisation and the pixels' normalisation are no weights.
"""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from stages.shared.model.clip import ClipModel
from stages.shared.model.towers.averaged import AveragedTower
from stages.shared.model.towers.pooled import PooledTower
from stages.shared.model.towers.tower import Tower
from stages.shared.model.towers.vision import Block, VisionTower

Depth = Literal["head", "all"]

DEPTHS: Final[tuple[Depth, ...]] = ("head", "all")

_WEIGHTS: Final = ("patch_weight", "patch_bias", "class_token", "position_embedding", "ln_pre")
"""What a transformer has before its blocks."""


def randomised(model: ClipModel, depth: Depth, seed: int) -> ClipModel:
    """The same model with shuffled weights in its image tower; the model itself stays as it is."""
    return replace(model, tower=_tower(model.tower, depth, torch.Generator().manual_seed(seed)))


def _tower(tower: Tower, depth: Depth, random: torch.Generator) -> Tower:
    if isinstance(tower, VisionTower):
        first = 0 if depth == "all" else len(tower.blocks) - 1
        changed: dict[str, Any] = {name: _shuffled(getattr(tower, name), random) for name in ("ln_post", "output")}
        changed["blocks"] = (*tower.blocks[:first], *(_shuffled(block, random) for block in tower.blocks[first:]))
        if depth == "all":
            changed |= {name: _shuffled(getattr(tower, name), random) for name in _WEIGHTS}
        return replace(tower, **changed)
    if isinstance(tower, PooledTower):
        trunk = _shuffled(tower.trunk, random) if depth == "all" else tower.trunk
        return replace(tower, pool=_shuffled(tower.pool, random), trunk=trunk)
    if isinstance(tower, AveragedTower):
        trunk = _shuffled(tower.trunk, random) if depth == "all" else tower.trunk
        return replace(tower, finish=_shuffled(tower.finish, random), trunk=trunk)
    raise TypeError(f"expected an image tower of this project, got a {type(tower).__name__}")


def _shuffled(part: Any, random: torch.Generator) -> Any:
    """Any part of a tower with the numbers of each of its weights in a random order."""
    if isinstance(part, Tensor):
        order = torch.randperm(part.numel(), generator=random).to(part.device)
        return part.flatten()[order].reshape(part.shape) if part.is_floating_point() else part
    if isinstance(part, Block):
        return _shuffled_block(part, random)
    if isinstance(part, nn.Module):
        return _shuffled_module(part, random)
    owner = getattr(part, "__self__", None)
    if isinstance(owner, nn.Module):  # a method of a network
        return getattr(_shuffled_module(owner, random), part.__name__)
    if isinstance(part, tuple):
        return tuple(_shuffled(each, random) for each in part)
    if is_dataclass(part) and not isinstance(part, type):
        # A field that is no argument is what the part remembers of other weights.
        names = [each.name for each in fields(part) if each.init and each.name not in ("mean", "std")]
        return replace(part, **{name: _shuffled(getattr(part, name), random) for name in names})
    return part


def _shuffled_block(block: Block, random: torch.Generator) -> Block:
    names = ("ln_1", "qkv", "out", "ls_1", "ln_2", "fc", "proj", "ls_2")
    return replace(block, **{name: _shuffled(getattr(block, name), random) for name in names})


def _shuffled_module(module: nn.Module, random: torch.Generator) -> nn.Module:
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(_shuffled(parameter.detach().clone(), random))
    return copied
