"""Shapes: every kind has one, in the unit square, unlike every other."""

import itertools

import numpy as np
import pytest

from phrasebox.pipeline.demo.scenes.captions import COLOUR_NAMES, COLOURS, KINDS, PLURALS
from phrasebox.pipeline.demo.scenes.drawing import (
    paint_object,
    paint_silhouette,
    pick_tones,
    shapes,
    silhouette_bounds,
)

MATRIX = np.array([[60, 0, 40], [0, 60, 40]], dtype=np.float32)


def silhouette(kind: str) -> np.ndarray:
    labels = np.zeros((80, 80), np.uint8)
    paint_silhouette(labels, 1, kind, MATRIX)
    return labels.astype(bool)


def test_there_is_a_shape_for_each_kind_and_it_fills_the_unit_square_along_one_side() -> None:
    assert set(shapes()) == set(KINDS)
    assert (len(KINDS), len(COLOUR_NAMES), len(set(PLURALS.values()))) == (36, 10, 36)
    for parts in shapes().values():
        points = np.concatenate([outline for part in parts for outline in part.outlines])
        low = points.min(axis=0)
        high = points.max(axis=0)
        assert np.allclose(low + high, 0, atol=1e-5)
        assert np.isclose((high - low).max(), 1.0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_details_do_not_change_the_silhouette(kind: str) -> None:
    """What is painted is what the mask says, up to the anti-aliased rim of a pixel."""
    image = np.zeros((80, 80, 3), np.uint8)
    paint_object(
        image, kind, dict.fromkeys(("main", "dark", "light", "ink", "glass"), (255, 255, 255)), MATRIX
    )
    painted = image[..., 0] > 0
    mask = silhouette(kind)
    padded = np.pad(mask, 2)
    near = np.zeros_like(mask)
    for dy, dx in itertools.product(range(5), range(5)):
        near |= padded[dy : dy + 80, dx : dx + 80]
    assert mask.sum() > 150
    assert not (painted & ~near).any()
    assert (image[..., 0][mask] > 100).mean() > 0.97


def test_no_two_kinds_share_a_silhouette() -> None:
    masks = {kind: silhouette(kind) for kind in KINDS}
    for first, second in itertools.combinations(KINDS, 2):
        union = (masks[first] | masks[second]).sum()
        assert (masks[first] & masks[second]).sum() / union < 0.93, (first, second)


def test_silhouette_bounds_is_the_placed_bounds() -> None:
    x0, y0, x1, y1 = silhouette_bounds("arrow", MATRIX)
    assert (x0, x1) == pytest.approx((10, 70))
    assert y1 - y0 == pytest.approx(60 * 1.2 / 2)


def test_tones_stay_nearest_to_their_own_colour() -> None:
    means = np.array(list(COLOURS.values()), dtype=float)
    right = 0
    for k in range(500):
        colour = COLOUR_NAMES[k % 10]
        main = np.array(pick_tones(np.random.default_rng(k), colour)["main"], dtype=float)
        right += COLOUR_NAMES[int(np.linalg.norm(means - main, axis=1).argmin())] == colour
    assert right >= 495
