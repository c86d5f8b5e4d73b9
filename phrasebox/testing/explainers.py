"""The contract of explainers: shapes and ranges of maps, the same maps for the same images, an untouched model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.contract.values import Json
from phrasebox.stages.explain.base import Explainer
from phrasebox.stages.model.clip import ClipModel
from phrasebox.testing.models import OpenClipModel, demo_model
from phrasebox.testing.requirement import expect_raised, require
from phrasebox.testing.settings import check_settings

PHRASES: Final[Sequence[Sequence[str]]] = [["red car", "dog", "two green fish"], [], ["dog"]]
"""The phrases of three images; the second one has none."""

_ACTIVATIONS: Final = ("GELU", "QuickGELU", "ReLU", "ReLU6", "SiLU")  # modules that every tower has


def check_explainer(
    explainer: type[Explainer[Any]],
    settings: Json | None = None,
    *,
    is_blind: bool = False,
    model: OpenClipModel | None = None,
) -> None:
    """Check all that explainers promise. Raise AssertionError with the promise that does not hold.

    Args:
        explainer: The class.
        settings: Values of its settings other than the defaults, for example those that make it quick.
        is_blind: Whether it gives all phrases of an image the same map.
        model: A model that it is defined on; by default the bundled `demo`, which has a class token.
    """
    parts = demo_model() if model is None else model
    clip = parts.clip()
    check_settings(explainer.config_type, settings)
    check_heat_maps(explainer, clip, settings, is_blind=is_blind)
    check_repetition(explainer, clip, settings)
    check_independence(explainer, clip, settings)
    check_model_stays(explainer, parts, settings)


def check_heat_maps(
    explainer: type[Explainer[Any]],
    clip: ClipModel,
    settings: Json | None = None,
    *,
    is_blind: bool = False,
) -> None:
    """Check texts, shapes and values of the heat maps of three images, on two grids."""
    for rows, columns in ((4, 4), (3, 7)):
        images = draw_images(clip.input.patch_px, rows, columns)
        maps = _make(explainer, clip, settings, contrast=0.0).explain(images, PHRASES)
        texts = [[heat_map.text for heat_map in maps_of_image] for maps_of_image in maps]
        require(texts == PHRASES, "each phrase of each image has one map, in the order of the phrases")
        for heat_map in chain(*maps):
            _check_map(heat_map, (rows, columns))
        different_count = len({heat_map.values.tobytes() for heat_map in maps[0]})
        sound_count = sum(not heat_map.fault for heat_map in maps[0])
        if is_blind:
            require(different_count == 1, "a blind explainer gives all phrases of an image the same map")
        else:
            require(different_count >= sound_count, "phrases of an image have maps of their own")
    nothing = _make(explainer, clip, settings).explain(draw_images(clip.input.patch_px), [[], [], []])
    require(nothing == [[], [], []], "images without phrases have no maps")


def _check_map(heat_map: HeatMap, grid_hw: tuple[int, int]) -> None:
    values = heat_map.values
    require(values.shape == grid_hw, f"a map has the tower's grid: {grid_hw}, not {values.shape}")
    require(values.dtype == np.float32, f"a map is float32, not {values.dtype}")
    require(np.isfinite(values).all(), "the values of a map are finite")
    require((values >= 0).all(), "the values of a map are at least 0")
    require(values.any() != bool(heat_map.fault), "a map is all zeros if it has a fault, and only then")
    require(isinstance(heat_map.similarity, float), "the similarity is a float")
    require(-1 <= heat_map.similarity <= 1, "the similarity is a cosine")


def check_repetition(
    explainer: type[Explainer[Any]], clip: ClipModel, settings: Json | None = None
) -> None:
    """Check that the same images give the same bytes, whatever torch's random state, and stay as they are."""
    images = draw_images(clip.input.patch_px)
    originals = images.copy()
    answers = []
    for seed in (1, 99):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            maps = _make(explainer, clip, settings).explain(images, PHRASES)
        answers.append([(one.values.tobytes(), one.similarity, one.fault) for one in chain(*maps)])
    require(answers[0] == answers[1], "the same images give the same maps: no global random state")
    require(np.array_equal(images, originals), "images are only read")


def check_independence(
    explainer: type[Explainer[Any]], clip: ClipModel, settings: Json | None = None
) -> None:
    """Check that an image has the same maps alone and beside others, and at two scales in another order."""
    scaled = _make(explainer, clip, settings, scales=(1.0, 0.5))
    images = draw_images(clip.input.patch_px)
    together = scaled.explain(images, PHRASES)
    turned = scaled.explain(images[::-1].copy(), PHRASES[::-1])[::-1]
    plain = _make(explainer, clip, settings)
    beside = plain.explain(images, PHRASES)[:1]
    alone = plain.explain(images[:1], PHRASES[:1])
    for heat_map in chain(*together):
        _check_map(heat_map, (4, 4))  # the grid of the first scale
        require(heat_map.values.max() <= 1 + 1e-6, "maps at several scales are in 0 .. 1")
    for maps, other_maps in ((together, turned), (beside, alone)):
        for heat_map, again in zip(chain(*maps), chain(*other_maps), strict=True):
            is_close = _is_close(heat_map.values, again.values, 1e-3)
            require(is_close, "an image's maps do not depend on the other images of the batch")
            is_close = abs(heat_map.similarity - again.similarity) <= 1e-5
            require(is_close, "an image's similarities do not depend on the other images of the batch")


def check_model_stays(
    explainer: type[Explainer[Any]], model: OpenClipModel, settings: Json | None = None
) -> None:
    """Check that nothing is left on a model in training, half of whose parameters are frozen, even after an error."""
    module = copy.deepcopy(model.module).requires_grad_(True).train()
    for parameter in list(module.parameters())[::2]:
        parameter.requires_grad_(False)
    parts = model._replace(module=module)
    stride = model.spec.patch_px
    side = model.spec.size_px
    inputs = torch.rand(2, 3, side, side)
    before = state_of(module)
    # In training mode a forward pass of its own changes the statistics of batch normalisation.
    weights = copy.deepcopy(module.state_dict())
    outputs = copy.deepcopy(module).encode_image(inputs).detach()
    drawn = draw_images(stride)
    explaining = _make(explainer, parts.clip(), settings, affinity=_affinities(explainer)[-1])
    # The sides are multiples of the stride, and there are as many lists of phrases as images.
    with expect_raised(
        "a side that does not fit is a ValueError", ValueError, words=f"multiples of the {stride} px patch"
    ):
        explaining.explain(drawn[:, 1:], PHRASES)
    with expect_raised(
        "a missing list of phrases is a ValueError", ValueError, words="as many phrase lists as images"
    ):
        explaining.explain(drawn, PHRASES[:1])
    require(len(explaining.explain(drawn, PHRASES)[0]) == len(PHRASES[0]), "it works after an error")
    if "propagation" in _affinities(explainer):
        tokens = explaining.maps(torch.from_numpy(drawn)).tokens
        if tokens is None:
            raise AssertionError("Maps.tokens are needed, unless the settings allow affinity: none alone")
        require(
            tokens.shape[:2] == (len(PHRASES), 16), "Maps.tokens has one token for each cell: (B, N, D)"
        )
        require(not tokens.requires_grad, "Maps.tokens has no graph")
    del explaining
    _check_state(module, before)
    is_equal = [torch.equal(value, weights[name]) for name, value in module.state_dict().items()]
    require(all(is_equal), "weights and statistics of the model stay as they are")
    is_close = _is_close(module.encode_image(inputs).detach().numpy(), outputs.numpy(), 3e-5)
    require(is_close, "the model computes what it computed before")

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("in the middle")

    [part for part in module.visual.modules() if type(part).__name__ in _ACTIVATIONS][-1].forward = fail
    before = state_of(module)
    with expect_raised("an error of the model is raised", RuntimeError, words="in the middle"):
        _make(explainer, parts.clip(), settings).explain(drawn, PHRASES)
    _check_state(module, before)
    require(torch.is_grad_enabled(), "torch computes gradients after an error as before")


def _check_state(module: nn.Module, before: list[Any]) -> None:
    require(state_of(module) == before, "no hook, flag, mode, gradient or method is left on the model")


def state_of(module: nn.Module) -> list[Any]:
    """Return all that an explainer could leave behind on a model."""
    hooks = [
        name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)
    ]
    parts = [
        (
            name,
            part.training,
            getattr(part.forward, "__func__", part.forward),
            "forward" in vars(part),
            *(len(vars(part)[hook]) for hook in hooks),
        )
        for name, part in module.named_modules()
    ]
    parameters = [
        (name, id(p), p.requires_grad, p.grad, p.dtype, p.device, p._version)
        for name, p in module.named_parameters()
    ]
    return [parts, parameters, [(name, id(b), b._version) for name, b in module.named_buffers()]]


def draw_images(patch_px: int, rows: int = 4, columns: int = 4) -> NDArray[np.uint8]:
    """Return three images of so many cells, uint8 (3, height, width, 3)."""
    shape = (len(PHRASES), rows * patch_px, columns * patch_px, 3)
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


def _is_close(actual: NDArray[Any], expected: NDArray[Any], share: float) -> bool:
    """Whether numbers differ nowhere by more than a share of the largest expected one."""
    return np.allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max(initial=0))


def _affinities(explainer: type[Explainer[Any]]) -> tuple[str, ...]:
    return get_args(explainer.config_type.model_fields["affinity"].annotation)


def _make(
    explainer: type[Explainer[Any]], clip: ClipModel, settings: Json | None, **others: Any
) -> Explainer[Any]:
    return explainer(explainer.config_type.model_validate({**(settings or {}), **others}), clip)
