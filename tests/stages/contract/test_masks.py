import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from phrasebox.stages.contract.masks import (
    decode_mask,
    decode_runs,
    encode_counts,
    encode_edges,
    encode_mask,
    encode_polygons,
    innermost_pixel,
    mask_box_xywh_px,
    mask_outlines,
    mask_rings,
    rle_area_px,
    rle_box_xywh_px,
    rle_iou,
    rle_union,
    run_ends,
)
from phrasebox.stages.contract.records import Rle
from tests.build.cases import cases
from tests.build.records import mask as with_boxes
from tests.stages.regions.cutting import mask_of

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(masks, st.sampled_from(["C", "F"]), st.sampled_from([1, 2, 255]))
def test_encode_and_decode_are_inverse(mask, order, value):
    """Of masks in any layout, with any value inside."""
    rle = encode_mask(np.array(mask * np.uint8(value), order=order))
    assert rle.size_hw == mask.shape
    np.testing.assert_array_equal(decode_mask(rle), mask)
    assert rle_area_px(rle) == mask.sum()
    assert rle_box_xywh_px(rle) == mask_box_xywh_px(mask)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 1)])
def test_other_shapes_are_rejected(shape):
    for function in (encode_mask, mask_box_xywh_px, mask_outlines):
        with pytest.raises(ValueError, match="expected a mask"):
            function(np.zeros(shape, dtype=bool))


def test_counts_are_the_text_that_coco_stores():
    # two columns of three: runs 1, 2, 3 are the characters "123" by the format's definition
    assert encode_mask(np.array([[0, 0], [1, 0], [1, 0]], dtype=np.uint8)) == Rle(
        size_hw=(3, 2), counts="123"
    )


def edges_of(mask: np.ndarray) -> np.ndarray:
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    return np.flatnonzero(flat[1:] != flat[:-1])


@given(masks)
def test_edges_give_the_code_of_their_mask(mask):
    assert encode_edges(edges_of(mask), mask.shape) == encode_mask(mask)


@pytest.mark.parametrize("edges", [[3, 2], [1, 1], [-1, 2], [2, 7], [0, 2, 2, 4]])
def test_edges_that_do_not_rise_are_rejected(edges):
    with pytest.raises(ValueError, match="expected rising edges"):
        encode_edges(np.array(edges), (3, 2))


def ends_of(*rles: Rle) -> tuple[np.ndarray, np.ndarray]:
    text = np.frombuffer("".join(rle.counts for rle in rles).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(rle.counts.encode()) for rle in rles)])
    return run_ends(text, offsets, np.array([rle.size_hw[0] * rle.size_hw[1] for rle in rles], np.int64))


@given(
    st.lists(st.integers(1, 5_000_000) | st.integers(1, 40_000_000), min_size=1, max_size=30), st.booleans()
)
def test_runs_of_any_length_and_number(runs, starts_inside):
    """Differences of either sign, of up to seven characters, alone and among others."""
    counts = [0, *runs] if starts_inside else runs
    rle = encode_counts(counts, (sum(counts), 1))
    np.testing.assert_array_equal(decode_runs(rle), counts)
    ends, starts = ends_of(rle, rle)
    np.testing.assert_array_equal(ends, [*np.cumsum(counts), *np.cumsum(counts)])
    np.testing.assert_array_equal(starts, [0, len(counts), 2 * len(counts)])


DAMAGED = [
    "12",
    "1234",
    "12S",
    "1 3",
    "12\u00e9",
    "O123",
    "",
    "oooooooooooo0",
    "O@15",
    "0o",
    "~",
    "```",
    "P2",
]
DAMAGED += ["o" * 7 + "O", "oooooooooo1", "1", "04NOPQRST"]


@pytest.mark.parametrize("counts", DAMAGED)
def test_damaged_text_among_many_is_rejected(counts):
    sound = encode_mask(np.eye(3, 2, dtype=bool))
    for rles in ([Rle(size_hw=(3, 2), counts=counts)], [sound, Rle(size_hw=(3, 2), counts=counts), sound]):
        with pytest.raises(ValueError, match="expected run"):
            ends_of(*rles)
    with pytest.raises(ValueError, match="expected run"):
        decode_runs(Rle(size_hw=(3, 2), counts=counts))


@given(masks, st.data())
def test_counts_with_empty_runs_are_the_same_mask(mask, data):
    runs = decode_runs(encode_mask(mask)).tolist()
    for _ in range(3):
        # a run of 0 cuts another in two
        place = data.draw(st.integers(0, len(runs) - 1))
        cut = data.draw(st.integers(0, runs[place]))
        runs[place : place + 1] = [cut, 0, runs[place] - cut]
    assert encode_counts(runs, mask.shape) == encode_mask(mask)


@pytest.mark.parametrize("counts", [[], [5], [7], [-1, 7], [7, -1], [6.0], [True, 5], [2**40, -(2**40), 6]])
def test_counts_that_are_no_code_are_rejected(counts):
    with pytest.raises(ValueError, match="expected whole run lengths"):
        encode_counts(counts, (3, 2))


@cases(
    ("polygons", "expected"),
    {
        "rectangle": ([[1, 0, 3, 0, 3, 2, 1, 2]], [".##.", ".##.", "...."]),
        "union": ([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]], ["##..", "###.", ".##."]),
        "cut off": ([[2, -9, 9, -9, 9, 1, 2, 1]], ["..##", "....", "...."]),
        "outside": ([[9, 9, 12, 9, 12, 12, 9, 12]], ["....", "....", "...."]),
        "two points beside": ([[0, 0, 4, 3], [3, 2, 4, 2, 4, 3, 3, 3]], ["....", "....", "...#"]),
    },
)
def test_encode_polygons(polygons, expected):
    assert encode_polygons(polygons, (3, 4)) == encode_mask(mask_of(*expected))


@pytest.mark.parametrize(
    "bad", [[0, 0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 1, float("nan")], [0, 0, 1, 0, 1, 1e12]]
)
def test_polygons_that_cannot_be_drawn_are_rejected(bad):
    with pytest.raises(ValueError, match="pairs of coordinates"):
        encode_polygons([[0, 0, 1, 0, 1, 1], bad], (3, 4))


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))))
def test_rle_union(stack):
    assert rle_union([encode_mask(mask) for mask in stack]) == encode_mask(stack.any(axis=0))


@cases(
    ("a", "b", "expected"),
    {
        "one pixel of five": (["##.", "##."], [".##", "..."], 1 / 5),
        "both empty": (["...", "..."], ["...", "..."], 0.0),
    },
)
def test_rle_iou(a, b, expected):
    assert rle_iou(encode_mask(mask_of(*a)), encode_mask(mask_of(*b))) == pytest.approx(expected)


def test_two_masks_of_different_images():
    masks = [encode_mask(np.ones(shape, dtype=bool)) for shape in ((2, 3), (3, 2))]
    with pytest.raises(ValueError, match="one size"):
        rle_iou(*masks)


def filled(mask: np.ndarray) -> np.ndarray:
    """Everything that cannot be reached from beyond the border by steps up, down, left, right."""
    outside = np.pad(mask.astype(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return outside[1:-1, 1:-1] != 2


@given(masks)
def test_polygons_draw_the_mask_again_without_holes(mask):
    polygons = mask_outlines(mask)[0]
    if not mask.any():
        assert polygons == []
        return
    drawn = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
    assert drawn["counts"].decode("ascii") == encode_mask(filled(mask)).counts


def test_holes_are_counted():
    """An island in a hole lies within the outer outline already."""
    ring = with_boxes((4, 4, 20, 16), holes=((10, 8, 5, 5), (18, 8, 2, 2)))
    island = ring | with_boxes((12, 10, 1, 1))
    assert mask_outlines(ring)[1] == 2
    assert mask_outlines(island) == mask_outlines(ring)
    assert sorted(depth for _, depth in mask_rings(island)) == [0, 1, 1, 2]


def test_fewer_corners_stay_near_the_mask():
    y, x = np.mgrid[:200, :300]
    disc = np.hypot(x - 150, y - 100) < 80
    [exact], _ = mask_outlines(disc)
    [rough], _ = mask_outlines(disc, tolerance_px=1)
    assert len(rough) < len(exact) / 4
    assert rle_iou(encode_polygons([rough], disc.shape), encode_mask(disc)) > 0.99


@pytest.mark.parametrize("box", [(3, 4, 1, 1), (0, 0, 40, 1), (0, 0, 1, 30), (5, 5, 2, 2)])
def test_small_parts_keep_their_area(box):
    assert mask_outlines(with_boxes(box), tolerance_px=5) == mask_outlines(with_boxes(box))


def test_the_innermost_pixel_is_in_the_middle_of_the_thickest_part() -> None:
    inside = np.zeros((9, 20), np.bool_)
    inside[4, :10] = True
    inside[2:7, 10:20] = True
    assert innermost_pixel(inside) in {(14, 4), (15, 4)}
