"""Which phrases and regions answer which targets."""

from collections.abc import Iterable
from typing import Any

import pytest

from phrasebox.pipeline.evaluate.matching import Query, match_images, queries_of
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.truth.ground_truth import GroundTruth, TruthImage, TruthTarget
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.evaluate.query_builders import map_of, mask_of, target_of

BOX = (0.0, 0.0, 4.0, 4.0)
CAPTION = "a red car and two cars"


def phrase_of(text: str, head: str, start: int = 0, caption: int = 0) -> Phrase:
    return Phrase(text=text, head=head, caption_index=caption, start=start, end=start + len(text))


def annotation_of(phrase: str, score: float) -> Json:
    rle = {"size": [8, 8], "counts": mask_of(BOX).counts}
    return {"phrase": phrase, "bbox": list(BOX), "segmentation": rle, "score": score, "similarity": 0.3}


def row_of(*annotations: Json, **values: Any) -> Json:
    captions = ["a dog", CAPTION]
    row = {"id": 7, "file_name": "a.jpg", "width": 8, "height": 8, "captions": captions, "error": None}
    return {**row, "annotations": list(annotations), **values}


def queries_of_targets(
    targets: list[TruthTarget],
    phrases: list[Phrase],
    row: Json | None = None,
    categories: Iterable[str] = (),
    present: Iterable[str] = (),
) -> list[Query]:
    image = TruthImage(
        file_name="a.jpg", width_px=8, height_px=8, targets=tuple(targets), present=frozenset(present)
    )
    maps = {phrase.text: map_of([[1.0, 0.0]], phrase.text) for phrase in phrases}
    return queries_of(1, row or row_of(), image, frozenset(categories), phrases, maps)


def test_a_phrase_is_matched_by_its_whole_text_and_a_target_without_one_is_missed() -> None:
    row = row_of(annotation_of("red car", 0.2), annotation_of("red car", 0.8), annotation_of("cars", 0.5))
    (query,) = queries_of_targets(
        [target_of(BOX, phrase="red car")], [phrase_of("red car", "car"), phrase_of("cars", "car")], row
    )
    assert query.phrase == "red car"
    assert [answer.score for answer in query.answers] == [0.8, 0.2]
    assert query.heat.heat_map.text == "red car"
    (query,) = queries_of_targets(
        [target_of(BOX, phrase="boat")], [phrase_of("red car", "car")], row_of(annotation_of("car", 0.9))
    )
    assert (query.phrase, query.answers, query.heat) == (None, (), None)


def test_a_phrase_that_stands_in_two_captions_has_its_regions_and_its_map_once() -> None:
    row = row_of(annotation_of("dog", 0.4), annotation_of("dog", 0.4))
    targets = [target_of(BOX, phrase="dog", caption=caption) for caption in ("a dog", None)]
    phrases = [phrase_of("dog", "dog", 2), phrase_of("dog", "dog", caption=1)]
    first, second = queries_of_targets(targets, phrases, row)
    assert len(first.answers) == 1
    assert first.heat is not None
    assert first.heat is second.heat


@pytest.mark.parametrize(
    ("caption", "true_caption", "phrase", "true_phrase"),
    [
        ("a dog", "A dog .", "dog", "dog"),
        (
            "A grey dog runs along the sea.",
            "A gray dog runs along the sea .",
            "grey dog",
            "gray dog",
        ),
    ],
)
def test_a_target_wants_the_phrase_in_its_caption_however_that_is_spelled(
    caption: str, true_caption: str, phrase: str, true_phrase: str
) -> None:
    target = target_of(BOX, phrase=true_phrase, caption=true_caption)
    (query,) = queries_of_targets([target], [phrase_of(phrase, "dog", 2)], row_of(captions=[caption]))
    assert query.phrase == phrase


def test_a_target_of_a_caption_is_answered_by_the_phrase_of_that_caption_and_others_by_the_first() -> None:
    phrases = [phrase_of("car", "car"), phrase_of("dog", "dog", 2), phrase_of("car", "car", 6, caption=1)]
    captions = ["a dog and a car", CAPTION]
    targets = [target_of(BOX, phrase="car", caption=caption) for caption in (*captions, None, "a boat")]
    targets += [target_of(BOX, phrase=name, match="category") for name in ("car", "boat")]
    queries = queries_of_targets(targets, phrases, row_of(captions=captions), categories=["dog"])
    assert [query.phrase_index for query in queries] == [0, 2, 0, None, 0, 1]
    assert [query.phrase for query in queries] == ["car", "car", "car", None, "car", "dog"]


def test_what_is_known_to_be_absent_is_asked_without_a_target() -> None:
    phrases = [phrase_of("red car", "car"), phrase_of("blue car", "car"), phrase_of("shadow", "shadow")]
    row = row_of(annotation_of("blue car", 0.7), annotation_of("shadow", 0.9))
    targets = [target_of(BOX, phrase="red car")]
    queries = queries_of_targets(targets, phrases, row, {"car", "boat"})
    summaries = [(query.phrase, query.target is None, len(query.answers)) for query in queries]
    assert summaries == [("red car", False, 0), ("blue car", True, 1)]
    assert len(queries_of_targets(targets, phrases, row)) == 1
    # Some other car is there, perhaps one that the truth would call blue too.
    assert len(queries_of_targets(targets, phrases, row, {"car", "boat"}, {"car"})) == 1
    listed = TruthImage(
        file_name="a.jpg", width_px=8, height_px=8, targets=(), absent=frozenset({"blue car"})
    )
    (query,) = queries_of(1, row, listed, frozenset(), phrases)
    assert (query.phrase, query.target, len(query.answers)) == ("blue car", None, 1)


def test_a_row_with_an_error_misses_its_targets_and_one_of_another_size_is_refused() -> None:
    row = row_of(error="missing_image: gone", width=0, height=0)
    (query,) = queries_of_targets([target_of(BOX, phrase="red car")], [], row)
    assert (query.phrase, query.size_hw) == (None, (8, 8))
    with expect_error(InputError):
        queries_of_targets([], [], row_of(width=9))


def truth_of(*names: str) -> GroundTruth:
    return GroundTruth(
        images={name: TruthImage(file_name=name, width_px=8, height_px=8, targets=()) for name in names}
    )


@pytest.mark.parametrize(
    ("names", "true_names", "matched", "ambiguous"),
    [
        # By the whole name, or by a last part that is unique. A row per caption makes no image ambiguous.
        (
            ["1.jpg", "train/2.jpg", "train/2.jpg", "3.jpg", "a/3.jpg", "4.jpg"],
            ["val/1.jpg", "2.jpg", "a/3.jpg", "b/3.jpg"],
            {"1.jpg": "val/1.jpg", "train/2.jpg": "2.jpg", "a/3.jpg": "a/3.jpg"},
            1,
        ),
        # Without the extension.
        (
            ["1.webp", "in/2.PNG", "3"],
            ["1.jpg", "2.jpg", "3.jpg"],
            {"1.webp": "1.jpg", "in/2.PNG": "2.jpg", "3": "3.jpg"},
            0,
        ),
        # The exact name wins, and its image is not given away twice.
        (["1.jpg", "1.webp"], ["1.jpg"], {"1.jpg": "1.jpg"}, 1),
        # Several of the dataset are like one of the ground truth, or the other way round.
        (["1.webp", "1.png", "2.webp"], ["1.jpg", "2.jpg"], {"2.webp": "2.jpg"}, 2),
        (["1.webp", "2.webp"], ["1.jpg", "1.png", "2.jpg"], {"2.webp": "2.jpg"}, 1),
    ],
)
def test_images_are_matched_one_to_one(names, true_names, matched, ambiguous) -> None:
    matches = match_images(names, truth_of(*true_names))
    assert {name: image.file_name for name, image in matches.images.items()} == matched
    assert matches.counts == {"images": len(matched), "ambiguous": ambiguous}


def test_nothing_in_common_is_refused_with_examples() -> None:
    with expect_error(InputError):
        match_images(["x.jpg"], truth_of("1.jpg"))
