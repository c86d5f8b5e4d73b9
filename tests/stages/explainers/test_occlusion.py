"""Occlusion against images that are hidden one at a time, and its windows."""

import numpy as np
import pytest
import torch

from phrasebox.stages.explainers.occlusion import OcclusionConfig, windows
from tests.closeness import assert_close
from tests.factories import SPEC
from tests.stages.explain.models import image, make_explainer

DEFAULTS = OcclusionConfig()


def test_a_map_is_what_the_cosine_loses_in_the_mean_over_the_windows() -> None:
    explainer = make_explainer("occlusion", window=0.5, stride=0.5)
    rgb = image(columns=5, seed=3)
    (heat_map,) = explainer.explain(rgb, [["dog"]])[0]
    text = explainer.texts(["dog"])[0]
    mean = np.array(SPEC.mean) * 255

    def cosine(pixels: np.ndarray) -> float:
        with torch.no_grad():
            e = explainer.model.tower.encode(torch.from_numpy(pixels[None]))[0]
        return float(e @ text / e.norm())

    whole = cosine(rgb[0].astype(np.float32))
    losses: list[list[list[float]]] = [[[] for _ in range(5)] for _ in range(4)]
    for top in range(3):
        for left in range(4):
            hidden = rgb[0].astype(np.float32)
            hidden[8 * top : 8 * top + 16, 8 * left : 8 * left + 16] = mean
            for row, column in np.ndindex(2, 2):
                losses[top + row][left + column].append(whole - cosine(hidden))
    expected = np.array([[np.mean(cell) for cell in row] for row in losses])
    assert (expected > 0.001).any()
    assert (expected < -0.001).any()
    assert_close(heat_map.values, np.maximum(expected, 0), 1e-3)  # small differences of cosines
    assert heat_map.similarity == pytest.approx(whole, abs=1e-5)


def test_a_square_image_never_takes_more_than_500_windows() -> None:
    numbers = [len(windows((cells, cells), DEFAULTS.window, DEFAULTS.stride)) for cells in range(1, 65)]
    assert max(numbers) == 484


@pytest.mark.parametrize(
    ("grid_hw", "settings", "number", "side"),
    [
        ((4, 4), (DEFAULTS.window, DEFAULTS.stride), 16, 1),
        ((14, 21), (DEFAULTS.window, DEFAULTS.stride), 260, 2),
        ((5, 8), (0.6, 1.0), 2 * 3, 3),  # a stride that does not fit ends with the grid
        ((3, 3), (1.0, 1.0), 1, 3),
    ],
)
def test_windows_cover_the_grid(grid_hw, settings, number, side) -> None:
    hidden = windows(grid_hw, *settings)
    assert hidden.shape == (number, *grid_hw)
    assert set(hidden.sum(dim=(1, 2)).tolist()) == {side * side}
    assert (hidden.sum(dim=0) >= 1).all()
    assert hidden[-1, -side:, -side:].all()
