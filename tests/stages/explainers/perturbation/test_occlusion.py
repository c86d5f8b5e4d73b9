"""Occlusion: images that were masked by hand, one at a time."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from stages.explainers.perturbation.occlusion import Occlusion, OcclusionConfig, windows
from stages.shared.model.load import from_open_clip
from tests.factories import SPEC, TOWERS, tiny_clip

tokenizer = open_clip.get_tokenizer("ViT-B-32")


def test_a_map_is_what_the_cosine_loses_in_the_mean_over_the_windows() -> None:
    explainer = Occlusion(OcclusionConfig(window=0.5, stride=0.5), from_open_clip(tiny_clip(), tokenizer, SPEC))
    rgb = np.random.default_rng(3).integers(0, 256, (1, 32, 40, 3), dtype=np.uint8)
    (heat_map,) = explainer.explain(rgb, [["dog"]])[0]
    text = explainer.texts(["dog"])[0]
    mean = np.array(SPEC.mean) * 255

    def cosine(pixels: np.ndarray) -> float:
        with torch.no_grad():
            e = explainer.model.tower.encode(torch.from_numpy(pixels[None]))[0]
        return float(e @ text / e.norm())

    whole, losses = cosine(rgb[0].astype(np.float32)), [[[] for _ in range(5)] for _ in range(4)]
    for top in range(3):
        for left in range(4):
            hidden = rgb[0].astype(np.float32)
            hidden[8 * top : 8 * top + 16, 8 * left : 8 * left + 16] = mean
            for row, column in np.ndindex(2, 2):
                losses[top + row][left + column].append(whole - cosine(hidden))
    wanted = np.array([[np.mean(cell) for cell in row] for row in losses])
    assert (wanted > 0.001).any()
    assert (wanted < -0.001).any()
    assert np.allclose(heat_map.values, np.maximum(wanted, 0), atol=1e-5)
    assert heat_map.similarity == pytest.approx(whole, abs=1e-5)


DEFAULTS = OcclusionConfig()


def test_a_square_image_never_takes_more_than_500_windows() -> None:
    numbers = [len(windows((cells, cells), DEFAULTS.window, DEFAULTS.stride)) for cells in range(1, 65)]
    assert max(numbers) == 484


@pytest.mark.parametrize(
    ("grid_hw", "number", "side"), [((4, 4), 16, 1), ((7, 7), 49, 1), ((14, 14), 169, 2), ((14, 21), 260, 2)]
)
def test_windows_cover_the_grid(grid_hw: tuple[int, int], number: int, side: int) -> None:
    hidden = windows(grid_hw, DEFAULTS.window, DEFAULTS.stride)
    assert hidden.shape == (number, *grid_hw)
    assert set(hidden.sum(dim=(1, 2)).tolist()) == {side * side}
    assert (hidden.sum(dim=0) >= 1).all()


def test_a_stride_that_does_not_fit_ends_with_the_grid() -> None:
    hidden = windows((5, 8), 0.6, 1.0)
    assert hidden.shape[0] == 2 * 3
    assert hidden[-1, 2:, 5:].all()
    assert windows((3, 3), 1.0, 1.0).all()


def test_heat_stands_on_its_cell_where_tokens_look_beside_theirs() -> None:
    make, spec = TOWERS["timm, SAME, rotary"]
    explainer = Occlusion(OcclusionConfig(window=1.0), from_open_clip(make(), tokenizer, spec))
    rgb = np.random.default_rng(3).integers(0, 256, (1, 32, 64, 3), dtype=np.uint8)
    assert explainer.model.tower.placement.shift_cells != 0
    assert explainer.explain(rgb, [["dog"]])[0][0].shift_cells == 0
