from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.masks import encode_mask
from stages.pictures import heat_map_overlay, regions_overlay, row, sheet
from stages.records import HeatMap

GREY = np.full((60, 80, 3), 128, np.uint8)


def heat_map(values: Any) -> HeatMap:
    return HeatMap(text="dog", values=np.array(values, np.float32), similarity=0.2)


def annotation(x: int, y: int, w: int, h: int, phrase: str = "dog") -> dict[str, Any]:
    mask = np.zeros((60, 80), bool)
    mask[y : y + h, x : x + w] = True
    rle = encode_mask(mask)
    coded = {"size": list(rle.size_hw), "counts": rle.counts}
    return {"bbox": [float(x), float(y), float(w), float(h)], "segmentation": coded, "phrase": phrase, "score": 0.5}


def test_heat_is_red_where_it_is_hot_and_blue_where_it_is_cold() -> None:
    picture = heat_map_overlay(GREY, heat_map([[0, 0, 0, 9], [0, 0, 0, 9]])).astype(int)
    assert picture.shape == GREY.shape
    hot, cold = picture[:, -5:].mean((0, 1)), picture[:, :5].mean((0, 1))
    assert hot[0] > hot[2] + 50
    assert cold[2] >= cold[0]


@pytest.mark.parametrize("values", [[[0, 0], [0, 0]], [[3, 3], [3, 3]], [[1]]], ids=["zero", "constant", "one cell"])
def test_a_map_without_contrast_is_cold_everywhere(values: Any) -> None:
    picture = heat_map_overlay(GREY, heat_map(values))
    assert (picture == picture[0, 0]).all()


def test_masks_boxes_and_captions_are_drawn() -> None:
    given = GREY.copy()
    picture = regions_overlay(GREY, [annotation(40, 30, 20, 20), annotation(2, 2, 6, 50)], ["two dogs"])
    assert np.array_equal(GREY, given)
    assert picture.shape[1] == 80
    assert picture.shape[0] > 60, "the caption stands below"
    assert (picture[40, 50] != 128).any(), "inside the mask"
    assert (picture[30, 45] != picture[40, 50]).any(), "the box is another colour"
    assert (picture[55, 70] == 128).all(), "outside"
    assert (picture[62:].reshape(-1, 3).min(axis=0) < 60).all(), "ink"


def test_without_annotations_or_captions_the_image_stays() -> None:
    assert np.array_equal(regions_overlay(GREY, []), GREY)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (79, 59, 1, 1), (0, 0, 80, 60), (79, 0, 1, 60)])
def test_labels_at_the_borders(box: tuple[int, int, int, int]) -> None:
    long = annotation(*box, phrase="a phrase that is far wider than the image it names something in")
    assert regions_overlay(GREY, [long]).shape == GREY.shape


@pytest.mark.parametrize("text", ["", "line\nbreak\ttab", "Żółw 乌龟 🐢", "\ud800", "word " * 80, "x" * 300])
def test_any_caption_can_be_drawn(text: str) -> None:
    assert regions_overlay(GREY, [annotation(1, 1, 5, 5, phrase="乌龟")], [text]).shape[1] == 80


def test_a_row_stands_side_by_side() -> None:
    both = row([GREY, GREY], ["one", "two"])
    assert both.shape[1] == 160
    assert both.shape[0] > 60


def test_a_sheet_holds_pictures_of_any_size() -> None:
    sizes = [(60, 80), (20, 100), (90, 10), (5, 5), (60, 80)]
    pictures = [np.full((h, w, 3), 50 * i, np.uint8) for i, (h, w) in enumerate(sizes)]
    paper = sheet(pictures, columns=2)
    assert paper.shape == (60 + 90 + 60 + 4 * 8, 2 * (100 + 8) + 8, 3)
    for i, (h, w) in enumerate(sizes):
        assert (paper == 50 * i).all(axis=-1).sum() >= h * w
