"""What training sees of a photograph."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.photo.variants import mirrored, plain, variants, varied


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_the_first_two_are_exact(rgb: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    first, second = variants(2)
    assert np.array_equal(first(rgb, rng), rgb)
    assert np.array_equal(second(second(rgb, rng), rng), rgb)
    assert not np.array_equal(second(rgb, rng), rgb)


def test_there_are_as_many_as_asked_for() -> None:
    assert variants(1) == (plain,)
    assert variants(4) == (plain, mirrored, varied, varied)


def test_a_varied_one_is_a_function_of_the_draw(rgb: np.ndarray) -> None:
    once, again, other = (varied(rgb, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert once.shape == rgb.shape
    assert once.dtype == np.uint8
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_a_varied_one_shows_at_least_half_of_the_photograph() -> None:
    """Of a photograph whose brightness says the column, the brightest and darkest columns tell what is shown."""
    columns = np.broadcast_to(np.linspace(80, 160, 64), (64, 64))
    rgb = np.repeat(columns[:, :, None], 3, axis=2).astype(np.uint8)
    for seed in range(20):
        shown = varied(rgb, np.random.default_rng(seed)).astype(float)
        assert np.ptp(shown) >= 80 * 0.75 * 0.4
