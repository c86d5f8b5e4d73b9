import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from phrasebox.stages.contract.masks import decode_mask, encode_mask, mask_box_xywh_px
from phrasebox.stages.regions.paint import field_of, paint
from phrasebox.stages.regions.parts import HeatPart
from phrasebox.stages.scores.score import Evidence
from tests.build.cases import cases
from tests.stages.regions.cutting import mask_of


@cases(
    ("values", "size_hw", "rows"),
    {
        # the sign changes at column 2.0, a pixel's edge
        "left half": ([[1.0, -1.0]], (1, 4), ["##.."]),
        # cell centres at 1 and 3; zero at 1 + 2 * 3 / 4 = 2.5, the centre of pixel 2: outside
        "zero at a pixel's centre, leaving": ([[3.0, -1.0]], (1, 4), ["##.."]),
        "zero at a pixel's centre, entering": ([[-1.0, 3.0]], (1, 4), ["..##"]),
        "one pixel reads the middle": ([[-1.0, 5.0, -1.0]], (1, 1), ["#"]),
    },
)
def test_paint(values, size_hw, rows):
    painted = paint(np.array(values, np.float32), size_hw)
    expected = mask_of(*rows)
    np.testing.assert_array_equal(decode_mask(painted.mask), expected)
    assert painted.mask == encode_mask(expected)
    assert painted.box_xywh_px == mask_box_xywh_px(expected)
    assert painted.area_px == expected.sum()


fields = st.builds(
    lambda h, w, seed: np.random.default_rng(seed).normal(-0.3, 1.0, (h, w)).astype(np.float32),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
)
sides = st.integers(1, 40)


@given(fields, sides, sides)
def test_paint_is_the_sign_of_the_interpolated_field(values, height_px, width_px):
    painted = paint(np.array(values, np.float32), (height_px, width_px))
    field = cv2.resize(values.astype(np.float64), (width_px, height_px), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros(field.shape, dtype=bool) if painted is None else decode_mask(painted.mask)
    clear = np.abs(field) > 1e-5  # float32 arithmetic
    np.testing.assert_array_equal(mask[clear], (field > 0)[clear])
    if painted is not None:
        assert painted.mask == encode_mask(mask)
        assert painted.box_xywh_px == mask_box_xywh_px(mask)
        assert painted.area_px == mask.sum() > 0


def part_of(inside: np.ndarray) -> HeatPart:
    evidence = Evidence(energy=1, area=1, mean_inside=1, mean_outside=0, peak=1, threshold=0)
    return HeatPart(inside=inside, top=0, left=0, threshold=5.0, evidence=evidence)


def test_the_field_of_a_part_keeps_the_contour_and_turns_the_rest():
    fine = np.array([[9.0, 1.0, 8.0, 6.0], [1.0, 1.0, 1.0, 7.0], [1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    corner = field_of(part_of(mask_of("#")), fine)
    np.testing.assert_array_equal(corner, [[4, -4, -3, -1], [-4, -4, -4, -2], [-4, -4, -4, -4]])
    filled = np.array([[9.0, 5.0, 9.0, 2.0, 9.0]], dtype=np.float32)
    np.testing.assert_allclose(field_of(part_of(mask_of("####")), filled), [[4, 1e-3, 4, 3, -4]])


def test_large_images_need_no_large_arrays():
    values = np.full((14, 14), -1.0)
    values[3:9, 2:12] = 1.0
    painted = paint(np.array(values, np.float32), (30_000, 30_000))
    # centres of cells 1 and 2: the sign changes at 2 * 30,000 / 14 = 4,285.7, and so on
    assert painted.box_xywh_px == (4286.0, 6429.0, 21428.0, 12857.0)
