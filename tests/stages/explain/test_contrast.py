from dataclasses import replace

import numpy as np
import pytest

from stages.contract.records import HeatMap
from stages.explain.stage import contrasted


def heat_map(*values: float, fault: str = "") -> HeatMap:
    return HeatMap(text="dog", values=np.array([values], np.float32), similarity=0.2, fault=fault)


def test_what_others_show_at_the_same_place_is_taken_away() -> None:
    # shares of the largest: 1 .5 .2 and .5 0 1
    first, second = contrasted([heat_map(4, 2, 0.8), heat_map(0.5, 0, 1)], 0.5)
    assert first.values == pytest.approx(np.array([[3.0, 2.0, 0.0]]))  # 4 (1 - .25), 4 * .5, 4 (.2 - .5) < 0
    assert second.values == pytest.approx(np.array([[0.0, 0.0, 0.9]]))
    assert first.values.dtype == np.float32
    assert (first.text, first.similarity) == ("dog", 0.2)


def test_the_hottest_of_several_others_counts() -> None:
    first = contrasted([heat_map(1, 1, 1), heat_map(1, 0.5, 0), heat_map(0, 1, 0)], 0.25)[0]
    assert first.values == pytest.approx(np.array([[0.75, 0.75, 1.0]]))


def test_maps_of_one_form_keep_it() -> None:
    one = heat_map(3, 1, 2)
    for each in contrasted([one, heat_map(6, 2, 4)], 0.25):
        assert each.values / each.values.max() == pytest.approx(one.values / 3)


def test_nothing_to_compare_with() -> None:
    one, broken = heat_map(3, 1), heat_map(0, 0, fault="empty")
    assert contrasted([one], 0.5) == [one]
    assert contrasted([one, broken], 0.5) == [one, broken]
    assert contrasted([one, heat_map(1, 3)], 0.0)[0] is one
    assert contrasted([], 0.5) == []


def test_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    maps = [heat_map(*rng.random(12)) for _ in range(5)]
    there = contrasted(maps, 0.25)
    back = contrasted(maps[::-1], 0.25)[::-1]
    assert [each.values.tobytes() for each in there] == [each.values.tobytes() for each in back]


@pytest.mark.parametrize("count", [2, 3, 9])
def test_all_maps_at_once_are_contrasted_as_each_alone(count: int) -> None:
    rng = np.random.default_rng(count)
    maps = [replace(heat_map(), values=rng.lognormal(0, 2, (7, 5)).astype(np.float32)) for _ in range(count)]
    maps[1] = replace(maps[0], text="the same heat")
    maps.insert(1, heat_map(0, fault="empty"))
    clear = [each for each in maps if not each.fault]
    shares = [each.values / each.values.max() for each in clear]
    found = contrasted(maps, 0.4)
    for row, each in enumerate(clear):
        others = np.max([share for number, share in enumerate(shares) if number != row], axis=0)
        alone = np.maximum(shares[row] - np.float32(0.4) * others, 0) * each.values.max()
        assert found[row + (row > 0)].values.tobytes() == alone.tobytes()
    assert found[1] is maps[1]
