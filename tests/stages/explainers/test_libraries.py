"""Explainers that mask the image against captum and grad-cam, which know open_clip's model alone.

The libraries are imported by the tests that ask them: they take seconds, in every process that collects tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tqdm
from torch import Tensor, nn

from phrasebox.stages.contract.geometry import resize_shifted
from phrasebox.stages.explain.base import Explainer
from phrasebox.stages.explainers.shapley import halve
from tests.closeness import assert_close
from tests.factories import TOWERS
from tests.stages.explain.models import clip_of, image, make_explainer, module_of

SCALE = 1 / 0.07  # of a model of open_clip before its training
NARROW: dict[str, dict[str, Any]] = {"class token": {}, "ResNet": {"width": 2}}
"""Towers, and what makes them cheap: each of their channels is a forward pass of Score-CAM."""

towers = pytest.mark.parametrize("tower", NARROW)
pytestmark = pytest.mark.usefixtures("float64")


@dataclass
class Question:
    """A phrase and an image as a library takes them: normalised pixels (1, 3, height, width), a function of them."""

    explainer: Explainer[Any]
    rgb: Tensor
    text: Tensor
    pixels: Tensor
    model: nn.Module

    def cosine(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(pixels), dim=-1) @ self.text  # type: ignore[operator]

    def heat(self, sign: int = 1) -> np.ndarray:
        """Our map of the phrase or of its opposite, (rows, columns)."""
        texts = torch.zeros(1, 8, len(self.text))
        texts[0, 0] = sign * self.text
        heat = self.explainer.maps(self.rgb).heat(texts)[0, 0].detach().numpy()
        return heat.reshape(self.explainer.model.tower.grid_of(self.rgb))

    def values(self) -> np.ndarray:
        """Our map before negative values are cut, of a method that is linear in the phrase: its opposite keeps them."""
        assert self.heat().any()
        return self.heat() - self.heat(-1)


def question(kind: str, tower: str, **settings: Any) -> Question:
    """On the one size of images that open_clip's own model takes."""
    cells = TOWERS[tower][1].size_px // TOWERS[tower][1].patch_px
    rgb = torch.from_numpy(image(tower, cells, cells, seed=4))
    explainer = make_explainer(kind, clip_of(tower, **NARROW[tower]), **settings)
    return Question(
        explainer=explainer,
        rgb=rgb,
        text=explainer.texts(["dog"])[0],
        pixels=explainer.model.tower.normalise(rgb),
        model=module_of(tower, **NARROW[tower]),
    )


def of_cells(attribution: Tensor, stride: int) -> np.ndarray:
    """An attribution (1, 3, height, width) that is the same in every pixel of a cell -> (rows, columns)."""
    return attribution[0, 0, ::stride, ::stride].numpy()


@towers
def test_occlusion_is_captums(tower: str) -> None:
    """Windows of two cells that move by one, which fit the grid: captum would cut off the last ones elsewhere."""
    from captum.attr import Occlusion

    stride = TOWERS[tower][1].patch_px
    cells = TOWERS[tower][1].size_px // stride
    asked = question("occlusion", tower, window=2 / cells, stride=0.5)
    attribution = Occlusion(asked.cosine).attribute(
        asked.pixels,
        sliding_window_shapes=(3, 2 * stride, 2 * stride),
        strides=(3, stride, stride),
        baselines=0.0,  # behind the normalisation
        perturbations_per_eval=4,
    )
    assert_close(asked.values(), of_cells(attribution, stride), 1e-9)


@towers
def test_partition_shap_is_captums_shapley_values_of_the_halves_of_halves(tower: str) -> None:
    """captum knows no hierarchy, so that it is asked for the halves of each half, in both contexts of the other half.

    Shapley values of single cells are others, because there a cell forms coalitions with cells of the other half.
    """
    from captum.attr import ShapleyValues

    stride = TOWERS[tower][1].patch_px
    asked = question(
        "partition_shap", tower, max_evaluations=1 + 2 + 4 * 2
    )  # nothing, two halves, four contexts
    rows, columns = asked.explainer.model.tower.grid_of(asked.rgb)
    whole = (slice(0, rows), slice(0, columns))
    expected = np.zeros((rows, columns))
    for half, other in itertools.permutations(halve(whole)):
        numbers = torch.zeros(rows, columns, dtype=torch.long)
        numbers[halve(half)[1]] = (
            1  # pixels of the other half belong to the first player, and change nothing
        )
        for is_shown in (0.0, 1.0):
            mask = torch.zeros(rows, columns)
            mask[other] = is_shown
            context = asked.pixels * enlarge(mask, stride)
            mask[half] = 1
            attribution = ShapleyValues(asked.cosine).attribute(
                asked.pixels * enlarge(mask, stride),
                baselines=context,
                feature_mask=enlarge(numbers, stride)[None, None],
            )
            expected[half] += of_cells(attribution, stride)[half] / 2
    quarter = rows * columns // 4
    assert_close(asked.values(), expected / quarter)  # captum adds in float32


def enlarge(cells: Tensor, stride: int) -> Tensor:
    """(rows, columns) -> pixels (height, width)."""
    return cells.repeat_interleave(stride, dim=0).repeat_interleave(stride, dim=1)


LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "class token": lambda visual: visual.transformer.resblocks[-1].ln_1,
    "ResNet": lambda visual: visual.layer4,
}


@towers
def test_score_cam_is_that_of_grad_cam(tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one step: it enlarges channels so that their corners lie in the image's corners, beside their cells."""
    from pytorch_grad_cam import ScoreCAM

    asked = question("score_cam", tower, channels=10_000, weights="softmax")
    cells = asked.explainer.model.tower.grid_of(asked.rgb)
    shift = asked.explainer.model.tower.placement.shift_cells

    def draw(channels: Tensor, size: tuple[int, int]) -> Tensor:
        planes = [resize_shifted(channel.numpy(), size, shift) for channel in channels[0]]
        return torch.from_numpy(np.stack(planes))[None]

    def as_grid(features: Tensor) -> Tensor:
        return features if features.dim() == 4 else features[:, 1:].mT.unflatten(-1, cells)

    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: partial(draw, size=tuple(size)))
    monkeypatch.setattr(tqdm, "tqdm", lambda steps: steps)
    layer = LAYERS[tower](asked.model.visual)
    visual = asked.model.visual
    with ScoreCAM(visual, [layer], reshape_transform=as_grid) as method:
        method.activations_and_grads(asked.pixels)
        (activations,) = (part.numpy() for part in method.activations_and_grads.activations)
        targets = [lambda embedding: SCALE * F.normalize(embedding, dim=-1) @ asked.text]
        expected = method.get_cam_image(asked.pixels, layer, targets, activations, None)[0]
    assert_close(asked.heat(), np.maximum(expected, 0))
