"""Answers and figures from embeddings that are written down here."""

import numpy as np
import pytest

from phrasebox.pipeline.research.score_model.answers import (
    Answers,
    Classification,
    differences_of,
    figures_of,
    find_phrases,
    rank_candidates,
    retrieve,
)
from phrasebox.pipeline.research.score_model.probe import Questions

X, Y, Z = np.eye(3, dtype=np.float32)


def questions_of(count: int, *phrases: tuple[str, tuple[int, ...]]) -> Questions:
    return Questions(
        boxes_rel=np.tile([0.0, 0.0, 1.0, 1.0], (count, 1)),
        objects=(),
        candidates=np.arange(count),
        phrases=phrases,
    )


def test_regions_are_named_among_all_classes() -> None:
    classification = Classification(["x", "y", "z"], np.stack([X, Y, Z]))
    classification.add(0, ["x", "y", None], np.stack([X, X, Z]))
    classification.add(1, [None], np.stack([Y]))
    classification.add(2, ["y", "y"], np.stack([X, X]))
    answers = classification.answers
    assert (answers.images, answers.classes) == ([0, 0, 2, 2], ["x", "y", "y", "y"])
    assert answers.values["top1"] == [1.0, 0.0, 0.0, 0.0]
    assert answers.values["top5"] == [1.0] * 4, "of three classes all are among the first five"
    figures = figures_of(answers)
    assert (figures["top1"].value, figures["top1"].n) == (0.25, 4)
    assert (figures["mean_per_class"].value, figures["mean_per_class"].n) == (0.5, 2), "each class once"


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
    gain = differences_of(answers.rounded(), reference.rounded())["top1"]
    assert (gain.value, gain.low, gain.high) == (0, 0, 0), "unpaired, chance alone would be wide"
    reference.values["top1"][0] = 1.0 - reference.values["top1"][0]
    assert abs(differences_of(answers, reference)["top1"].value) == pytest.approx(1 / 60)
    with pytest.raises(ValueError, match="the same questions"):
        differences_of(answers, Answers(images=[0], values={"top1": [1.0]}, classes=["x"]))


@pytest.mark.parametrize(  # ties are the mean over all orders, by counting them
    ("similarities", "right", "hits"),
    [
        ([0.9, 0.5, 0.1], [2], (0, 0, 1)),
        ([0.9, 0.5, 0.1], [1, 2], (0, 1, 1)),
        ([-0.9, -0.5, -0.1], [0], (0, 0, 1)),
        ([0.9, 0.5, 0.5], [2], (0, 1 / 2, 1)),
        ([0.5, 0.5, 0.5], [0, 1], (2 / 3, 1, 1)),
        ([0.5], [0], (1, 1, 1)),
        ([0.5] * 5, [0, 1], (2 / 5, 7 / 10, 9 / 10)),
        ([0.7, 0.5, 0.5, 0.5, 0.5, 0.2], [2, 4, 5], (0, 1 / 2, 5 / 6)),
    ],
)
def test_known_cases(similarities: list[float], right: list[int], hits: tuple[float, ...]) -> None:
    is_right = np.isin(np.arange(len(similarities)), right)
    ranks = rank_candidates(np.array([similarities], np.float32), is_right[None])
    assert [ranks.hits(k)[0] for k in (1, 2, 3)] == pytest.approx(list(hits))
