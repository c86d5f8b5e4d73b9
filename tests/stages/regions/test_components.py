import numpy as np
import pytest

from stages.regions.components import clean, components, ranked
from stages.regions.score import SCORES


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def find(fine: np.ndarray, inside: np.ndarray, min_area_share: float = 0.0, *, fill_holes: bool = False) -> list:
    return components(
        fine.astype(np.float32),
        inside,
        threshold=51.0,
        similarity=0.25,
        min_area_share=min_area_share,
        fill_holes=fill_holes,
    )


def test_diagonal_neighbours_are_one_part():
    inside = mask_of("#...#", ".#...", ".....")
    found = ranked(find(np.full((3, 5), 100.0), inside), SCORES["energy"], 0.0)
    assert [(part.top, part.left, part.samples) for part in found] == [(0, 0, 2), (0, 4, 1)]
    np.testing.assert_array_equal(found[0].inside, mask_of("#.", ".#"))


def test_evidence_by_hand():
    fine = np.array([[255.0, 153.0, 0.0, 51.0], [0.0, 0.0, 0.0, 51.0]])
    (part,) = find(fine, mask_of("##..", "...."))
    evidence = part.evidence
    assert evidence.energy == pytest.approx(408 / 510)
    assert evidence.area == 2 / 8
    assert evidence.mean_inside == pytest.approx((1.0 + 0.6) / 2)
    assert evidence.mean_outside == pytest.approx((0.2 + 0.2) / 6)
    assert evidence.peak == 1.0
    assert evidence.threshold == 0.2
    assert evidence.similarity == 0.25


def test_evidence_of_the_whole_image():
    (part,) = find(np.full((2, 2), 255.0), np.ones((2, 2), dtype=bool))
    assert part.evidence.energy == 1.0
    assert part.evidence.mean_outside == 0.0


def test_small_parts_are_dropped():
    inside = mask_of("##..", "##.#")
    assert [part.samples for part in find(np.full((2, 4), 100.0), inside, 0.25)] == [4]
    assert len(find(np.full((2, 4), 100.0), inside, 0.125)) == 2
    assert find(np.full((2, 4), 100.0), inside, 0.6) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (300, 500)])
def test_nothing_inside(shape):
    assert find(np.zeros(shape), np.zeros(shape, dtype=bool)) == []


def test_more_parts_than_sixteen_bits():
    inside = np.zeros((1, 140_000), dtype=bool)
    inside[0, ::2] = True
    assert len(find(np.ones(inside.shape), inside)) == 70_000


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        pytest.param(["#.##", "....", "....", "...."], [(0, 2), (0, 0)], id="larger first"),
        pytest.param(["...#", "....", "#...", "...."], [(0, 3), (2, 0)], id="then the upper one"),
        pytest.param(["#..#", "....", "....", "...."], [(0, 0), (0, 3)], id="then the left one"),
    ],
)
def test_rank_of_equals(rows, order):
    found = find(np.full((4, 4), 100.0), mask_of(*rows))
    for parts in (found, found[::-1]):
        assert [(part.top, part.left) for part in ranked(parts, SCORES["peak"], 1.0)] == order


def test_rank_comes_before_size():
    fine = np.full((1, 5), 100.0)
    fine[0, 4] = 200.0
    found = ranked(find(fine, mask_of("##..#")), SCORES["peak"], 0.5)
    assert [part.left for part in found] == [4, 0]


@pytest.mark.parametrize(
    ("settings", "rows", "expected"),
    [
        pytest.param({}, ["#.#", ".#.", "#.#"], ["#.#", ".#.", "#.#"], id="nothing asked"),
        pytest.param(
            {"open_radius": 1},
            ["......#", ".###...", ".######", ".###...", "......."],
            [".......", "..##...", ".####..", "..##...", "......."],
            id="opening takes specks and bridges",
        ),
        pytest.param({"open_radius": 1}, ["##...", "##...", "....."], ["##...", "#....", "....."], id="at the border"),
        pytest.param({"close_radius": 1}, ["##.##", "##.##"], ["#####", "#####"], id="closing joins"),
        pytest.param({"close_radius": 1}, ["#...#"], ["#...#"], id="too far apart to join"),
    ],
)
def test_clean(settings, rows, expected):
    wanted = {"open_radius": 0, "close_radius": 0} | settings
    np.testing.assert_array_equal(clean(mask_of(*rows), **wanted), mask_of(*expected))


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 5)])
def test_clean_leaves_full_and_empty_masks(value, shape):
    mask = np.full(shape, value)
    np.testing.assert_array_equal(clean(mask, open_radius=2, close_radius=2), mask)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(["#####", "#...#", "#.#.#", "#...#", "#####"], [["#####"] * 5], id="a hole and what is in it"),
        pytest.param(["###", "#.#", "#.#"], [["###", "#.#", "#.#"]], id="a bay is no hole"),
        pytest.param([".#.", "#.#", ".#."], [[".#.", "###", ".#."]], id="closed by corners"),
        pytest.param(["##...", "##..#"], [["##", "##"], ["#"]], id="two parts"),
    ],
)
def test_filled_holes(rows, expected):
    mask = mask_of(*rows)
    found = ranked(find(np.full(mask.shape, 100.0), mask, fill_holes=True), SCORES["energy"], 0.0)
    assert [part.inside.tolist() for part in found] == [mask_of(*part).tolist() for part in expected]


def test_parts_that_fall_behind_are_left_out():
    fine = np.full((1, 9), 100.0)
    found = find(fine, mask_of("####.##.#"))  # energies 4, 2 and 1 of 9
    assert [part.left for part in ranked(found, SCORES["energy"], 0.5)] == [0, 5]
    assert [part.left for part in ranked(found, SCORES["energy"], 0.51)] == [0]
    assert ranked([], SCORES["energy"], 0.5) == []
