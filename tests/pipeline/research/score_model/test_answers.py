"""Answers and figures from embeddings that are written down here."""

from itertools import permutations

import numpy as np
import pytest

from pipeline.research.score_model.answers import (
    Answers,
    Classification,
    differences_of,
    figures_of,
    find_phrases,
    rank_candidates,
    retrieve,
)
from pipeline.research.score_model.probe import ImageEmbeddings, Questions

X, Y, Z = np.eye(3, dtype=np.float32)


def embeddings_of(*regions: np.ndarray, masks: list[bool] | None = None) -> ImageEmbeddings:
    rows = np.stack(regions)
    has_mask = np.array(masks or [True] * len(rows))[:, None]
    return ImageEmbeddings(image=X, roi=rows, mask=rows * has_mask, crop=None)


def questions_of(count: int, *phrases: tuple[str, tuple[int, ...]]) -> Questions:
    return Questions(
        boxes_rel=np.tile([0.0, 0.0, 1.0, 1.0], (count, 1)),
        things=(),
        candidates=np.arange(count),
        phrases=phrases,
    )


def test_regions_are_named_among_all_classes() -> None:
    classification = Classification(["x", "y", "z"], np.stack([X, Y, Z]))
    classification.add(0, ["x", "y", None], embeddings_of(X, X, Z, masks=[True, False, True]))
    classification.add(1, ["y"], embeddings_of(Y))
    roi, mask, crop = (classification.answers[way] for way in ("roi", "mask", "crop"))
    assert (roi.images, roi.classes) == ([0, 0, 1], ["x", "y", "y"])
    assert roi.values["top1"] == [1.0, 0.0, 1.0]
    assert roi.values["top5"] == [1.0, 1.0, 1.0], "of three classes all are among the first five"
    assert (mask.classes, crop.images) == (["x", "y"], [])


def test_the_mean_over_classes_counts_each_class_once() -> None:
    answers = Answers()
    answers.add([0, 1, 2, 3], {"top1": np.array([1.0, 0.0, 0.0, 0.0])}, ["x", "y", "y", "y"])
    figures = figures_of(answers)
    top1, mean_per_class = (figures.figures[name] for name in ("top1", "mean_per_class"))
    assert (top1.value, top1.n, figures.n) == (0.25, 4, 4)
    assert (mean_per_class.value, mean_per_class.n) == (0.5, 2)


def test_phrases_are_looked_for_in_an_image_and_in_several() -> None:
    first = questions_of(2, ("a", (0,)), ("b", (1,)))
    second = questions_of(2, ("a", (1,)))
    regions = np.stack([X, Z])
    texts = np.stack([X, Y])
    single = Answers()
    find_phrases(single, [0], [first], [regions], texts)
    assert single.values["recall_1"] == [1.0, 0.5], "b is level with both"
    assert single.values["chance_1"] == [0.5, 0.5]
    together = Answers()
    find_phrases(together, [0, 7], [first, second], [regions, np.stack([X, Z])], np.stack([X, Y, X]))
    assert together.images == [0, 0, 7]
    # `a` means the first image's X and the second's Z; the second's X is wrong, and level.
    assert together.values["recall_1"] == [0.5, 0.25, 0.5]
    assert together.values["chance_1"] == [0.5, 0.25, 0.5]


def test_retrieval_in_both_directions() -> None:
    captions = [["x"], ["y", "z"], []]
    texts = {"x": 0, "y": 1, "z": 2}
    answers = retrieve([0, 1, 2], np.stack([X, Y, (X + Z) / 2**0.5]), captions, texts, np.stack([X, Y, Z]))
    assert answers["t2i"].images == [0, 1, 1]
    assert answers["t2i"].values["r1"] == [1.0, 1.0, 0.0], "z is more like the third image"
    assert answers["t2i"].values["r5"] == [1.0, 1.0, 1.0]
    assert answers["i2t"].images == [0, 1], "without a caption there is none to find"
    assert answers["i2t"].values["r1"] == [1.0, 1.0]


def test_the_same_caption_of_two_images_is_right_for_both() -> None:
    answers = retrieve([0, 1], np.stack([X, (X + Y) / 2**0.5]), [["x"], ["x"]], {"x": 0}, np.stack([X]))
    assert answers["t2i"].values["r1"] == [1.0, 1.0]
    assert answers["i2t"].values["r1"] == [1.0, 1.0]


def test_differences_are_paired() -> None:
    answers = Answers()
    reference = Answers()
    hits = np.random.default_rng(0).random(60) < 0.5
    classes = ["x", "y"] * 30
    answers.add(range(60), {"top1": np.ones(60) * hits}, classes)
    reference.add(range(60), {"top1": np.ones(60) * hits}, classes)
    gain = differences_of(answers.rounded(), reference.rounded()).figures["top1"]
    assert (gain.value, gain.low, gain.high) == (0, 0, 0), "unpaired, chance alone would be wide"
    reference.values["top1"][0] = 1.0 - reference.values["top1"][0]
    assert abs(differences_of(answers, reference).figures["top1"].value) == pytest.approx(1 / 60)
    with pytest.raises(ValueError, match="the same questions"):
        differences_of(answers, Answers(images=[0], values={"top1": [1.0]}, classes=["x"]))


def case_of(similarities: list[float], right: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([similarities], np.float32), np.isin(np.arange(len(similarities)), right)[None]


@pytest.mark.parametrize(
    ("similarities", "right", "hits"),
    [
        ([0.9, 0.5, 0.1], [0], (1, 1, 1)),
        ([0.9, 0.5, 0.1], [1], (0, 1, 1)),
        ([0.9, 0.5, 0.1], [2], (0, 0, 1)),
        ([0.9, 0.5, 0.1], [1, 2], (0, 1, 1)),
        ([-0.9, -0.5, -0.1], [0], (0, 0, 1)),
        ([0.5, 0.5, 0.1], [0], (1 / 2, 1, 1)),
        ([0.9, 0.5, 0.5], [2], (0, 1 / 2, 1)),
        ([0.5, 0.5, 0.5], [0, 1], (2 / 3, 1, 1)),
        ([0.5], [0], (1, 1, 1)),
    ],
)
def test_known_cases(similarities: list[float], right: list[int], hits: tuple[float, ...]) -> None:
    ranks = rank_candidates(*case_of(similarities, right))
    assert [ranks.hits(k)[0] for k in (1, 2, 3)] == pytest.approx(list(hits))


def test_ties_are_the_mean_over_all_orders() -> None:
    values = [0.7, 0.5, 0.5, 0.5, 0.5, 0.2]
    right = [2, 4, 5]
    firsts = []
    for order in permutations(range(len(values))):
        ranking = sorted(
            order, key=lambda index: -values[index]
        )  # a stable sort leaves equal ones in this order
        firsts.append(min(place for place, index in enumerate(ranking) if index in right))
    ranks = rank_candidates(*case_of(values, right))
    for k in range(1, 7):
        assert ranks.hits(k)[0] == pytest.approx(np.mean([first < k for first in firsts]))


def test_a_model_that_knows_nothing_scores_chance() -> None:
    """With whatever number of right answers, and wherever they stand."""
    right = np.array([[True, True, False, False, False], [False, False, False, False, True]])
    assert rank_candidates(np.ones((2, 5), np.float32), right).hits(1).tolist() == pytest.approx(
        [2 / 5, 1 / 5]
    )
