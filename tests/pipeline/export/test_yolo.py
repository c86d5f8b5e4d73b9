"""What a YOLO label is made of: one outline for a mask of several parts, numbers, names."""

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phrasebox.pipeline.export.yolo import join_outlines, quote_yaml
from phrasebox.stages.contract.masks import mask_outlines
from tests.build.records import mask


def parts_of(inside: np.ndarray) -> list[np.ndarray]:
    return [np.array(polygon).reshape(-1, 2) for polygon in mask_outlines(inside)[0]]


def enclosed_area(outline: np.ndarray) -> float:
    return abs(cv2.contourArea(outline.astype(np.float32)))


@given(hnp.arrays(np.bool_, (9, 11)).filter(np.any))
def test_the_outline_encloses_what_the_parts_enclose(inside: np.ndarray) -> None:
    parts = parts_of(inside)
    outline = join_outlines(parts)
    # Walked there and back, the joining lines enclose nothing. The parts all turn the same way.
    assert enclosed_area(outline) == pytest.approx(sum(enclosed_area(part) for part in parts))
    assert {tuple(point) for part in parts for point in part} == {tuple(point) for point in outline}


def test_parts_are_joined_at_their_nearest_corners() -> None:
    outline = join_outlines(parts_of(mask((0, 0, 2, 2), (5, 0, 2, 2), (5, 9, 2, 2))))
    steps = np.abs(np.diff(np.vstack([outline, outline[:1]]), axis=0)).sum(axis=1)
    assert sorted(steps[steps > 2]) == [3, 3, 7, 7]


@given(
    st.text()
    | st.sampled_from(["null", "yes", "1", "a: b # c", "\x85", "\u2028", "\x7f", "\ufeff", "😀", "'\"\\"])
)
def test_any_name_is_a_yaml_string(name: str) -> None:
    assert yaml.safe_load(f"names:\n  0: {quote_yaml(name)}\n") == {"names": {0: name}}
