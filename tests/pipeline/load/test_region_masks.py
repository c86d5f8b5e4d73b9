import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from phrasebox.pipeline.load.row_groups import grid_shares, masks_of, runs_of
from phrasebox.stages.contract.masks import encode_mask

sides = st.integers(1, 9)
grids = st.tuples(st.integers(1, 12), st.integers(1, 12))


def shares_by_pixels(mask: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """By sums along both sides, in float64."""
    down, right = (
        np.diff((np.arange(side + 1)[:, None] * (cells / side) - np.arange(cells)).clip(0, 1), axis=0)
        for side, cells in zip(mask.shape, grid_hw, strict=True)
    )
    return down.T @ mask @ right


@given(st.data(), grids)
def test_shares_are_those_of_the_pixels(data: st.DataObject, grid_hw: tuple[int, int]) -> None:
    size_hw = data.draw(st.tuples(sides, sides))
    masks = data.draw(st.lists(arrays.arrays(np.bool_, size_hw), max_size=3))
    runs = runs_of([encode_mask(mask) for mask in masks])
    grid = grid_shares(*runs, size_hw, grid_hw)
    assert grid.shape == (len(masks), *grid_hw)
    assert grid.dtype == np.float32
    for mask, shares in zip(masks, grid, strict=True):
        np.testing.assert_allclose(shares, shares_by_pixels(mask, grid_hw), atol=1e-5)


def test_stretched_masks_take_what_lies_at_the_pixels_centres() -> None:
    mask = np.array([[1, 0, 0], [0, 1, 1]], bool)
    codes = [encode_mask(mask), encode_mask(~mask)]
    regions = [{"segmentation": {"size": code.size_hw, "counts": code.counts}} for code in codes]
    doubled = np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(masks_of(regions, (2, 3), (2, 3)), [mask, ~mask])
    np.testing.assert_array_equal(masks_of(regions, (2, 3), (4, 6)), [doubled, ~doubled])
    np.testing.assert_array_equal(
        masks_of(regions, (2, 3), (1, 1))[:, 0, 0], [True, False]
    )  # row 1, column 1
    assert masks_of([], (2, 3), (8, 8)).shape == (0, 8, 8)
