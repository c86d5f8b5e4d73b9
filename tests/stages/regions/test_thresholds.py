import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.regions.thresholds import cut, fixed_cut, mean_cut, otsu_cut, quantile_cut

maps = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))


def levels_of(*values: int) -> np.ndarray:
    return np.array([values], dtype=np.uint8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param((0, 0, 0, 100), 25.5, id="mean 25, itself outside"),
        pytest.param((0, 0, 101), 33.5, id="mean 33.67"),
        pytest.param((0, 255), 127.5, id="mean 127.5"),
    ],
)
def test_mean(values, expected):
    assert mean_cut(levels_of(*values)[None]) == [expected]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.5), (0.5, 127.5), (0.4, 102.5), (0.6, 153.5), (0.999, 254.5), (1.0, 255.5)],
)
def test_fixed(share, expected):
    assert fixed_cut(share) == expected


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [
        pytest.param(0.0, 10.5, id="all but the smallest"),
        pytest.param(0.5, 30.5, id="middle of five"),
        pytest.param(0.6, 30.5, id="between two: the lower"),
        pytest.param(0.75, 40.5, id="fourth of five"),
        pytest.param(1.0, 50.5, id="nothing above the largest"),
    ],
)
def test_quantile(quantile, expected):
    assert quantile_cut(levels_of(30, 10, 50, 20, 40)[None], quantile) == [expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param((0, 0, 0, 255), 127.5, id="one hot cell: halfway, not just above zero"),
        pytest.param((10, 10, 20, 20), 14.5, id="cuts 10 .. 19 are equal, the middle is 14"),
        # variances n0 n1 (m1 - m0)^2: {0}|{4, 10}: 2 * 7^2 = 98, {0, 4}|{10}: 2 * 8^2 = 128
        pytest.param((0, 4, 10), 6.5, id="cuts 4 .. 9"),
        # {0}|{9, 10, 10}: 3 * (29/3)^2 = 280, {0, 9}|{10, 10}: 4 * 5.5^2 = 121
        pytest.param((0, 9, 10, 10), 4.5, id="cuts 0 .. 8"),
        # {10}|{20, 30} and {10, 20}|{30}: 2 * 15^2 both
        pytest.param((10, 20, 30), 14.5, id="two equal gaps, the lower one"),
        pytest.param((7, 7, 7), 7.5, id="a single level has nothing above"),
    ],
)
def test_otsu(values, expected):
    assert otsu_cut(levels_of(*values)[None]) == [expected]


def variance_between(values: np.ndarray, threshold: float) -> float:
    below, above = values[values <= threshold], values[values > threshold]
    if not below.size or not above.size:
        return 0.0
    return below.size * above.size * (float(above.mean()) - float(below.mean())) ** 2


@given(maps)
def test_otsu_is_the_best_of_all_cuts(levels):
    values = levels.astype(np.float64)
    best = max(variance_between(values, level + 0.5) for level in range(256))
    assert variance_between(values, otsu_cut(levels[None])[0]) == pytest.approx(best)


@given(maps, st.sampled_from(["mean", "otsu", "fixed", "quantile"]), st.floats(0, 1))
def test_every_rule_cuts_between_two_levels(levels, rule, value):
    (threshold,) = cut([levels], rule, share=value, quantile=value, fitted=None, usual=[])
    assert threshold % 1 == 0.5
    assert 0 < threshold < 256


@given(st.lists(hnp.arrays(np.uint8, (3, 4)), min_size=1, max_size=5))
def test_each_map_is_cut_as_if_alone(levels):
    for rule in ("mean", "otsu", "fixed", "quantile"):
        together = cut(levels, rule, share=0.4, quantile=0.7, fitted=None, usual=[])
        assert together == [cut([each], rule, share=0.4, quantile=0.7, fitted=None, usual=[])[0] for each in levels]


def test_each_rule_uses_its_own_setting():
    levels = levels_of(30, 10, 50, 20, 40)
    assert cut([levels], "mean", share=0.5, quantile=0.75, fitted=None, usual=[]) == [30.5]
    assert cut([levels], "otsu", share=0.5, quantile=0.75, fitted=None, usual=[]) == [24.5]
    assert cut([levels], "fixed", share=0.5, quantile=0.75, fitted=None, usual=[]) == [127.5]
    assert cut([levels], "quantile", share=0.5, quantile=0.75, fitted=None, usual=[]) == [40.5]
