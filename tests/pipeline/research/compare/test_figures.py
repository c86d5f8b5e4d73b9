"""Numbers from maps that are made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from phrasebox.pipeline.evaluate.matching import draw_map
from phrasebox.pipeline.research.compare.figures import (
    FEWEST_IMAGES,
    SAMPLES,
    Difference,
    Numbers,
    Place,
    correlation,
    differences_of,
    figures_of,
    mark_differences,
    overlaps,
    pair_numbers,
    place_numbers,
    place_of,
)
from phrasebox.pipeline.research.compare.maps import draw_baselines
from phrasebox.pipeline.research.compare.pictures import ComparedImage, Question
from phrasebox.stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from phrasebox.stages.model.load import from_open_clip
from tests.factories import SPEC, tiny_clip
from tests.pipeline.evaluate.query_builders import query_of, target_of


def image_of(number: int, *texts: str) -> ComparedImage:
    """128 x 128 px; the thing of every phrase fills the upper left quarter."""
    questions = []
    for text in texts:
        target = target_of((0.0, 0.0, 64.0, 64.0), size_hw=(128, 128), phrase=text)
        query = query_of(target, size_hw=(128, 128), image=number, phrase=text)
        phrase = Phrase(text=text, caption_index=0, start=0, end=1, head=text)
        questions.append(Question(phrase=phrase, object_=text[0], query=query))
    pixels = Pixels(rgb=np.zeros((128, 128, 3), np.uint8))
    record = Record(
        sample=Sample(sample_id=str(number), source=""), width_px=128, height_px=128, pixels=pixels
    )
    return ComparedImage(number=number, source=record, record=record, questions=tuple(questions))


def heat_map(values: np.ndarray, fault: str = "") -> HeatMap:
    return HeatMap(text="a", values=values.astype(np.float32), similarity=0.0, fault=fault)


def test_a_map_of_the_thing_is_right_and_a_failed_one_counts_as_missed() -> None:
    right = np.zeros((128, 128))
    right[:64, :64] = 1.0
    images = [image_of(0, "a"), image_of(1, "a")]
    maps = [{"x": [heat_map(right)]}, {"x": [heat_map(np.zeros((4, 4)), "empty")]}]
    numbers = place_numbers(images, maps, "x")
    assert numbers.images.tolist() == [0, 1]
    for name, values in numbers.values.items():
        assert values.tolist() == pytest.approx([1.0, 0.0], abs=0.02), name


def test_the_best_share_is_found_on_other_images_than_it_is_judged_on() -> None:
    values = np.full((128, 128), 0.55)
    values[:64, :64] = 1.0
    numbers = place_numbers([image_of(0, "a")], [{"x": [heat_map(values)]}], "x")
    assert numbers.values["mask_iou"].tolist() == pytest.approx([1.0])
    low = np.full((128, 128), 0.35)
    high = np.full((128, 128), 0.85)
    low[:64, :64] = 0.5
    high[:64, :64] = 1.0
    low[127, 127] = (
        1.0  # the thing of this map is only above 0.4 and below 0.5; that of the other above 0.9
    )
    maps = [{"x": [heat_map(values)]} for values in (low, high)]
    numbers = place_numbers([image_of(0, "a"), image_of(1, "a")], maps, "x")
    assert numbers.values["box_recall"].tolist() == [0.0, 0.0], "each would be found by a share of its own"


def test_marks_are_corrected_for_their_number() -> None:
    """Of 40 differences with a p-value of about 0.02 none is certain; one with 0.0001 is."""
    doubtful = Difference(value=0.232, low=0.036, high=0.428)
    certain = Difference(value=-0.4, low=-0.6, high=-0.2)
    many = {f"f{number}": doubtful for number in range(40)}
    first, second = mark_differences([many, {"a": certain, "b": replace(doubtful, low=math.nan)}])
    assert {difference.mark for difference in first.values()} == {""}
    assert [difference.mark for difference in second.values()] == ["-", ""]
    ((single,),) = ([*row.values()] for row in mark_differences([{"a": doubtful}]))
    assert single.mark == "+"


def test_pairs_of_phrases_are_told_apart_by_their_things() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((4, 4))
    b = rng.random((4, 4))
    maps = [{"x": [heat_map(a), heat_map(2 * a), heat_map(b)]}]
    figures = figures_of([pair_numbers([image_of(0, "cat", "car", "dog")], maps, "x")])
    assert figures["same_thing"].value == pytest.approx(1.0)
    assert (figures["same_thing"].n, figures["other_thing"].n) == (1, 2)
    assert figures["other_thing"].value == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)


def test_differences_are_paired_and_need_images() -> None:
    rng = np.random.default_rng(1)
    images = np.arange(FEWEST_IMAGES)
    base = rng.random(FEWEST_IMAGES)
    places = Numbers(values={"energy": base + 0.1}, images=images)
    reference = Numbers(values={"energy": base}, images=images)
    difference = differences_of([places], [reference])["energy"]
    assert (difference.low, difference.value, difference.high) == pytest.approx((0.1, 0.1, 0.1)), (
        "each image by itself"
    )
    few = Numbers(values={"energy": places.values["energy"][1:]}, images=images[1:])
    fewer = Numbers(values={"energy": base[1:]}, images=images[1:])
    assert math.isnan(differences_of([few], [fewer])["energy"].low)


def test_baselines_know_nothing() -> None:
    images = [image_of(0, "a", "b"), image_of(1, "a")]
    model = from_open_clip(tiny_clip(), spec=SPEC)
    maps = draw_baselines(images, model)
    spot = maps[0]["centre"][0].values
    assert spot.shape == model.tower.placement.grid_hw(128, 128)
    assert spot[0, 0] == spot[-1, -1] == spot.min() < spot.max()
    noise, again = (
        [heat.values.tobytes() for image_maps in part for heat in image_maps["random"]]
        for part in (maps, draw_baselines(images, model))
    )
    assert noise == again
    assert len(set(noise)) == 3, "another one for each phrase of each image"


def place(x: float, y: float, w: float, h: float, size_hw: tuple[int, int] = (64, 128)) -> Place:
    return place_of(query_of(target_of((x, y, w, h), size_hw=size_hw), size_hw=size_hw))


def test_what_lies_above_the_threshold_is_compared_exactly() -> None:
    heat = np.zeros((64, 128), np.float32)
    heat[10:30, 20:60] = 1.0
    heat[10:30, 60:80] = 0.4
    truth = place(20, 10, 40, 20)
    for threshold, iou in ((0.5, 1.0), (0.3, 40 / 60), (1.0, 0.0)):
        assert overlaps(heat, threshold, truth) == pytest.approx((iou, iou))


def test_the_box_is_that_of_the_part_with_most_heat_and_the_mask_of_all_parts() -> None:
    heat = np.zeros((64, 128), np.float32)
    heat[0:10, 0:10] = 0.9
    heat[40:60, 80:120] = 0.8
    assert overlaps(heat, 0.5, place(80, 40, 40, 20)) == pytest.approx((1.0, 800 / 900))
    assert overlaps(heat, 0.5, place(0, 0, 10, 10)) == pytest.approx((0.0, 100 / 900))
    heat = np.eye(64, 128, dtype=np.float32)
    assert overlaps(heat, 0.5, place(0, 0, 64, 64))[0] == 1.0, "parts touch by a corner"


def test_the_truth_on_the_samples() -> None:
    large = place(200, 150, 400, 300, (750, 1000))
    assert large.inside.shape == (96, SAMPLES)
    assert large.inside.mean() == pytest.approx(0.16, abs=0.005)
    assert large.boxes_xywh[0] == pytest.approx((25.6, 19.2, 51.2, 38.4))
    assert place(100, 400, 800, 2, (750, 1000)).inside.any(), "a thin thing does not vanish"


def test_the_correlation_is_numpys_and_of_the_finer_grid() -> None:
    a, b = np.random.default_rng(0).random((2, 5, 7), np.float32)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert correlation(a, a * 0) == 0.0, "a map that is the same everywhere is like no other"
    fine = np.add.outer(np.arange(8), 2 * np.arange(8)).astype(np.float32)
    coarse = fine.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert correlation(coarse, fine) == correlation(fine, coarse) > 0.98


def test_a_map_is_drawn_where_its_tokens_look() -> None:
    values = np.eye(4, dtype=np.float32)[1:2].repeat(4, axis=0)  # one hot column
    plain = HeatMap(text="a", values=values, similarity=0.0)
    columns = [draw_map(part, (40, 40))[0].argmax() for part in (plain, replace(plain, shift_cells=0.5))]
    assert columns[1] - columns[0] == 5
