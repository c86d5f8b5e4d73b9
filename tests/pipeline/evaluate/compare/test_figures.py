"""Numbers from maps that are made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.compare.figures import (
    FEWEST_IMAGES,
    Numbers,
    differences_of,
    figures_of,
    local_numbers,
    pair_numbers,
)
from pipeline.evaluate.compare.maps import baselines
from pipeline.evaluate.compare.pictures import ComparedImage, Question
from pipeline.evaluate.localisation import SHARES
from pipeline.evaluate.matching import Query
from stages.contract.masks import encode_mask
from stages.contract.records import HeatMap, Phrase, Record, Sample
from stages.shared.truth.ground_truth import TruthTarget


def image_of(number: int, *texts: str) -> ComparedImage:
    """128 x 128 px; the thing of every phrase fills the upper left quarter."""
    mask = np.zeros((128, 128), np.bool_)
    mask[:64, :64] = True
    questions = []
    for text in texts:
        target = TruthTarget(
            phrase=text, boxes_xywh_px=((0.0, 0.0, 64.0, 64.0),), match="phrase", mask=encode_mask(mask)
        )
        query = Query(image=number, size_hw=(128, 128), phrase=text, target=target, answers=())
        phrase = Phrase(text=text, caption_index=0, start=0, end=1, head=text)
        questions.append(Question(phrase=phrase, thing=text[0], query=query))
    record = Record(sample=Sample(sample_id=str(number), source=""), width_px=128, height_px=128)
    return ComparedImage(number=number, source=record, record=record, questions=tuple(questions))


def heat_map(values: np.ndarray, fault: str = "") -> HeatMap:
    return HeatMap(text="a", values=values.astype(np.float32), similarity=0.0, fault=fault)


def test_a_map_of_the_thing_is_right_and_a_failed_one_counts_as_missed() -> None:
    right = np.zeros((128, 128))
    right[:64, :64] = 1.0
    images = [image_of(0, "a"), image_of(1, "a")]
    maps = [{"x": [heat_map(right)]}, {"x": [heat_map(np.zeros((4, 4)), "empty")]}]
    numbers, best = local_numbers(images, maps, "x")
    assert numbers.images.tolist() == [0, 1]
    for name, values in numbers.values.items():
        assert values.tolist() == pytest.approx([1.0, 0.0], abs=0.02), name
    assert best == {"box_recall": SHARES[0], "mask_iou": SHARES[0]}


def test_the_best_share_is_found() -> None:
    values = np.full((128, 128), 0.55)
    values[:64, :64] = 1.0
    numbers, best = local_numbers([image_of(0, "a")], [{"x": [heat_map(values)]}], "x")
    assert best == {"box_recall": 0.6, "mask_iou": 0.6}
    assert numbers.values["mask_iou"].tolist() == pytest.approx([1.0])


def test_pairs_of_phrases_are_told_apart_by_their_things() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 4)), rng.random((4, 4))
    maps = [{"x": [heat_map(a), heat_map(2 * a), heat_map(b)]}]
    figures = figures_of([pair_numbers([image_of(0, "cat", "car", "dog")], maps, "x")])
    assert figures["same_thing"]["value"] == pytest.approx(1.0)
    assert (figures["same_thing"]["n"], figures["other_thing"]["n"]) == (1, 2)
    assert figures["other_thing"]["value"] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)


def test_differences_are_paired_and_need_images() -> None:
    rng = np.random.default_rng(1)
    images = np.arange(FEWEST_IMAGES)
    base = rng.random(FEWEST_IMAGES)
    known = Numbers(values={"energy": base + 0.1}, images=images)
    reference = Numbers(values={"energy": base}, images=images)
    found = differences_of([known], [reference])["energy"]
    assert (found["low"], found["value"], found["high"]) == pytest.approx((0.1, 0.1, 0.1)), "each image by itself"
    few = Numbers(values={"energy": known.values["energy"][1:]}, images=images[1:])
    fewer = Numbers(values={"energy": base[1:]}, images=images[1:])
    assert differences_of([few], [fewer])["energy"]["low"] is None


def test_baselines_know_nothing() -> None:
    images = [image_of(0, "a", "b"), image_of(1, "a")]
    maps = baselines(images, lambda _: (7, 9), 0)
    first = maps[0]["centre"][0].values
    assert first.shape == (7, 9)
    assert np.unravel_index(first.argmax(), first.shape) == (3, 4)
    random = [heat.values for own in maps for heat in own["random"]]
    assert len({values.tobytes() for values in random}) == 3
    assert random[0].tobytes() == baselines(images, lambda _: (7, 9), 0)[0]["random"][0].values.tobytes()
