"""Do maps follow weights and phrases? The sanity checks of Adebayo et al. (NeurIPS 2018, arXiv 1810.03292).

A map that explains a model changes when the model's weights do. The paper re-initialises layer
after layer, from the output on. Here the numbers within every weight of the image tower are
shuffled at once, which keeps their spread and so the scale of the activations.

The text tower stays as it is. Stored statistics of batch normalisation and the pixels'
normalisation are no weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from phrasebox.pipeline.research.compare.figures import MapValues, pearson
from phrasebox.pipeline.research.compare.maps import Contest, Maps
from phrasebox.pipeline.research.compare.pictures import SEED, ComparedImage
from phrasebox.pipeline.terminal import progress_bar
from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.contract.values import Floats32
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.towers.pooled import AveragedTower, PooledTower
from phrasebox.stages.model.towers.vision import Block, VisionTower

_TOWER: Final = (
    "ln_post",
    "output",
    "blocks",
    "patch_weight",
    "patch_bias",
    "class_token",
    "position_embedding",
    "registers",
    "ln_pre",
)
_BLOCK: Final = ("ln_1", "qkv", "out", "ls_1", "ln_2", "fc", "proj", "ls_2")
"""The weights of a transformer, and of a block of it."""


def check_sanity(contest: Contest, images: Sequence[ComparedImage], maps: Sequence[Maps]) -> MapValues:
    """Compute rank correlations of the first question's map with maps that should differ.

    Explainers that take many forward passes for each image are left out: they would need three
    times as many.

    Returns:
        For each image and contender the correlation with the map of a phrase of the next image
        (`phrase_swapped`) and with its own map by shuffled weights (`weights_all`).
    """
    first_phrases = [image.questions[0].phrase for image in images]
    labels = [contender.label for contender in contest.contenders]
    values: dict[int, dict[str, dict[str, float]]] = {
        image.number: {label: {} for label in labels} for image in images
    }
    attempts: list[tuple[str, ClipModel, list[Phrase]]] = [
        ("phrase_swapped", contest.model, [*first_phrases[1:], *first_phrases[:1]]),
        ("weights_all", shuffle_weights(contest.model), first_phrases),
    ]
    stages = {name: contest.stages(model) for name, model, _ in attempts}
    step = max(stage.forward_batch_size() for stage in stages["phrase_swapped"].values())
    contenders = [contender for contender in contest.contenders if not contender.repeats_trunk]
    count = 0
    with progress_bar(
        contest.console, "sanity, heat maps", len(images) * len(attempts) * len(contenders)
    ) as advance:
        for start in range(0, len(images), step):
            places = range(start, min(start + step, len(images)))
            for name, _, phrases in attempts:
                changed_images = [images[place].with_phrases(phrases[place]) for place in places]
                for contender in contenders:
                    label = contender.label
                    records = stages[name][label].process(contest.records(contender, changed_images))
                    for image, image_maps, record in zip(
                        changed_images, maps[start:], records, strict=False
                    ):
                        correlation = rank_correlation(
                            image_maps[label][0].values, record.heat_maps[0].values
                        )
                        values[image.number][label][name] = correlation
                    count += len(changed_images)
                    advance(count)
    return values


def rank_correlation(a: Floats32, b: Floats32) -> float:
    """Return Spearman's correlation of two maps of one shape, -1 .. 1; equal cells share their rank."""
    return pearson(rankdata(a), rankdata(b))


def shuffle_weights(model: ClipModel) -> ClipModel:
    """Return the same model with shuffled weights in its image tower; the model itself stays as it is."""
    random = torch.Generator().manual_seed(SEED)
    tower = model.tower
    names: tuple[str, ...]
    match tower:
        case VisionTower():
            names = _TOWER
        case PooledTower():
            names = ("trunk", "pool")
        case AveragedTower():
            names = ("trunk", "finish")
        case _:
            raise TypeError(f"expected an image tower of this project, got a {type(tower).__name__}")
    return replace(
        model, tower=replace(tower, **{name: _shuffle(getattr(tower, name), random) for name in names})
    )


def _shuffle(part: Any, random: torch.Generator) -> Any:
    """Return any part of a tower with the numbers of each weight in a random order."""
    if isinstance(part, Tensor):
        order = torch.randperm(part.numel(), generator=random).to(part.device)
        return part.flatten()[order].reshape(part.shape) if part.is_floating_point() else part
    if isinstance(part, Block):
        return replace(part, **{name: _shuffle(getattr(part, name), random) for name in _BLOCK})
    if isinstance(part, nn.Module):
        return _shuffle_module(part, random)
    owner = getattr(part, "__self__", None)
    if isinstance(owner, nn.Module):  # a method of a network
        return getattr(_shuffle_module(owner, random), part.__name__)
    if isinstance(part, tuple):
        return tuple(_shuffle(element, random) for element in part)
    if is_dataclass(part) and not isinstance(part, type):
        # A field that is no argument caches values of other weights.
        names = [field.name for field in fields(part) if field.init and field.name not in ("mean", "std")]
        return replace(part, **{name: _shuffle(getattr(part, name), random) for name in names})
    return part


def _shuffle_module(module: nn.Module, random: torch.Generator) -> nn.Module:
    duplicate = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.copy_(_shuffle(parameter.detach().clone(), random))
    return duplicate
