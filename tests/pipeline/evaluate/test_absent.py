"""Absent phrases: which are asked for, and the figures by hand."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.evaluate.absent import QueriedImage, choose_absent_phrases
from phrasebox.pipeline.evaluate.absent_figures import Pair, PresenceShares, absent_figures
from phrasebox.pipeline.evaluate.foreign_phrases import TextJudge, foreign_pairs, own_pairs
from phrasebox.stages.contract.records import HeatMap, Phrase, Record, Sample
from phrasebox.stages.explain.stage import ExplainStageConfig
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from tests.pipeline.evaluate.query_builders import answer_of, query_of, target_of
from tests.stages.regions.test_presence import EVEN

BOX = (0.0, 0.0, 4.0, 4.0)
FAR = (4.0, 4.0, 4.0, 4.0)


def image_of(
    number: int, *names: str, caption: str = "", present: frozenset[str] = frozenset()
) -> QueriedImage:
    """An image whose phrases are of the type of their first letter."""
    phrases = tuple(
        Phrase(text=name, caption_index=0, start=0, end=1, head=name.split()[-1]) for name in names
    )
    return QueriedImage(
        number=number,
        sample_id=f"s{number}",
        captions=(caption or " and ".join(names),),
        phrases=phrases,
        queries=tuple(query_of(target_of(BOX, groups={"type": name[0]}), phrase=name) for name in names),
        present=present,
    )


def test_absent_phrases_share_no_word_with_the_captions_and_the_truth() -> None:
    images = [
        image_of(1, "red car", "dog", caption="A red car, a dog; no Boat"),
        image_of(2, "blue car", "cat", caption="dark house"),
        image_of(3, "boat", "red hat", "wide road", "tree"),
        image_of(4, "dove", "cart", "bench", present=frozenset({"tree"})),
    ]
    images_by_number = choose_absent_phrases(images)
    for image in images_by_number.values():
        for phrases in image.absent.values():
            texts = {phrase.text for phrase in phrases}
            assert len(texts) == len(phrases)
            assert texts.isdisjoint(image.types_by_text)
        types = {name[0] for name in image.types_by_text}
        assert {phrase.text[0] for phrase in image.absent["same_type"]} <= types
    random = {phrase.text for phrase in images_by_number[1].absent["random"]}
    assert len(random) == 2
    assert random.isdisjoint({"blue car", "boat", "red hat"})
    absent = {phrase.text for phrases in images_by_number[4].absent.values() for phrase in phrases}
    assert "tree" not in absent


def test_an_attribute_is_another_colour_that_no_caption_says() -> None:
    all_but_two = "white yellow orange pink purple brown blue green"
    (image,) = choose_absent_phrases(
        [image_of(1, "big red car", "dog", caption=f"A red car, a dog; {all_but_two}")]
    ).values()
    assert [phrase.text for phrase in image.absent["attribute"]] == ["big black car"]
    assert image.absent["attribute"][0].head == "car"


def test_adversarial_phrases_have_the_nouns_that_stand_beside_those_of_the_image() -> None:
    """Boats occur with water, dogs do not; what a man wears may be there without a word, and "people" may be he."""
    images = [image_of(number, "lake", "boat") for number in range(1, 6)]
    images += [image_of(6, "lake", "shirt"), image_of(7, "lake", "people"), image_of(8, "dog")]
    images.append(image_of(9, "lake", "man"))
    assert [phrase.head for phrase in choose_absent_phrases(images)[9].absent["adversarial"]] == ["boat"]


CHOOSE = """
from tests.pipeline.evaluate.test_absent import choose_absent_phrases, image_of
images = [image_of(1, "lake", "boat", "tree", "dog", "lamp"), image_of(2, "lake", "red car"), image_of(3, "lake")]
print([(image.absent, image.voters) for image in choose_absent_phrases(images).values()])
"""


@pytest.mark.slow
def test_every_process_chooses_the_same_phrases() -> None:
    """All nouns stand beside the lake equally often, and Python gives sets of text another order in each process."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", CHOOSE],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(1, 5)
    }
    assert len(outputs) == 1


def boys() -> QueriedImage:
    """An image with three texts of one thing."""
    spans = {"boy": 0, "young boy": 1, "kid": 2}
    phrases = tuple(
        Phrase(text=text, caption_index=number, start=2, end=2 + len(text), head=text.split()[-1])
        for text, number in spans.items()
    )
    queries = (query_of(target_of(BOX, groups={"type": "people"}), phrase="boy"),)
    return QueriedImage(
        number=1,
        sample_id="s1",
        captions=tuple(f"a {text}" for text in spans),
        phrases=phrases,
        queries=queries,
        present=(),
    )


def test_an_absent_phrase_has_the_other_texts_of_its_thing_as_voters() -> None:
    image = choose_absent_phrases([boys(), image_of(2, "tree", caption="A tree, no young man")])[2]
    assert [phrase.text for phrase in image.absent["random"]] == ["boy"]
    assert [phrase.text for phrase in image.voters["boy"]] == ["kid"], "young is a word of the captions"


def test_presence_is_that_of_the_phrase_by_itself_and_shared_for_absent_phrases_too() -> None:
    """The presences of the three texts are 0.9, 0.5 and 0.5: those of a group share odds of the third root of 9."""
    presences = {"boy": 0.9, "young boy": 0.5, "kid": 0.5, "tree": 0.3}
    explains = SimpleNamespace(config=ExplainStageConfig())
    steps: Any = SimpleNamespace(
        regions_stage=RegionsStage(RegionsConfig(), EVEN), calibration=EVEN, model_stage=explains
    )
    heat = np.pad(np.ones((2, 2), np.float32), ((0, 2), (0, 2)))
    shared = 9 ** (1 / 3) / (1 + 9 ** (1 / 3))
    images = choose_absent_phrases([boys(), image_of(2, "tree", caption="A tree")])
    for image, kind in ((images[1], "there"), (images[2], "random")):
        texts = dict.fromkeys(phrase.text for phrase in image.all_phrases)
        maps = [HeatMap(text=text, values=heat, similarity=0.2, presence=presences[text]) for text in texts]
        record = Record(
            sample=Sample(sample_id="1", source="1", captions=image.captions),
            width_px=8,
            height_px=8,
            phrases=(*image.phrases, *image.absent["random"]),
            heat_maps=tuple(maps),
        )
        judge = TextJudge(steps)
        pairs = [
            *own_pairs(image, judge.judge_phrases(image, record)),
            *foreign_pairs(image, judge.judge_foreign(image, record)),
        ]
        (pair,) = (pair for pair in pairs if (pair.text, pair.kind) == ("boy", kind))
        assert (pair.presence, pair.presence_of_group) == (0.9, pytest.approx(shared, abs=1e-5))
        assert [answer.score for answer in pair.answers] == pytest.approx([shared / 2], abs=1e-5)


def pair_of(
    image: int,
    kind: str,
    presence: float | None,
    *boxes: Any,
    score: float = 0.5,
    group: float | None = None,
) -> Pair:
    return Pair(
        image=image,
        text="red car",
        kind=kind,
        similarity=0.1 * image,
        z_score=-0.1 * image,
        presence=presence,
        presence_of_group=presence if group is None else group,
        answers=tuple(answer_of(box, score=score) for box in boxes),
        boxes_xywh_px=(BOX,) if kind == "there" else (),
    )


def test_figures_by_hand() -> None:
    """Of three phrases that are there one is answered rightly, one wrongly, one not; of two others one is answered."""
    pairs = [
        pair_of(1, "there", 0.9, BOX, score=0.75),
        pair_of(2, "there", 0.8, FAR, score=0.25),
        pair_of(3, "there", 0.4, BOX, score=0.5, group=0.7),
        replace(pair_of(4, "random", 0.6, FAR, score=0.25), may_be_synonym=True),
        pair_of(5, "random", 0.1),
        pair_of(6, "same_type", 0.95),
        pair_of(7, "attribute", 0.85),
    ]
    figures = absent_figures(pairs)
    assert {name: count for name, count in figures.pairs.items() if count} == {
        "there": 3,
        "random": 2,
        "same_type": 1,
        "attribute": 1,
        "without_synonyms": 1,
    }
    single, shared, cosine = (figures.by[way] for way in ("presence", "presence_of_group", "similarity"))
    areas = {"auc": 5 / 6, "auc_without_synonyms": 1.0, "auc_same_type": 0.0, "auc_attribute": 1 / 3}
    assert {name: single[name].value for name in areas} == pytest.approx(areas)
    assert single["auc_adversarial"] is None
    assert shared["auc"].value == 1.0
    assert cosine["auc"].value == 0.0
    assert figures.by["z_score"]["auc"].value == 1.0
    assert single["il_mcc"].value == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    assert single["positive_f1"].value == pytest.approx(2 / 5)
    assert single["cgf1"].value == pytest.approx(2 / 5 / 6)
    assert shared["positive_f1"].value == pytest.approx(2 * 2 / 6)
    # Only scores of 0.5 or more: two of three are answered, rightly, and nothing that is not there.
    assert figures.saco["il_mcc"].value == pytest.approx(2 * 2 / (2 * 3 * 2 * 3) ** 0.5)
    assert figures.saco["positive_f1"].value == pytest.approx(2 * 2 / 5)
    assert figures.shares[-1] == PresenceShares(presence=0.5, present=1.0, absent=0.5)


def test_the_cosine_answers_without_presence() -> None:
    """A run writes nothing for the second and the last phrase, which presence finds absent; the cosine does."""
    pairs = [pair_of(4, "there", 0.9, BOX), pair_of(3, "there", 0.01, BOX), pair_of(2, "random", 0.02, FAR)]
    pairs = [replace(pair, is_written=pair.presence > 0.1) for pair in pairs]  # type: ignore[operator]
    figures = absent_figures(pairs)
    assert figures.by["similarity"]["positive_f1"].value == 1.0
    assert figures.by["presence"]["positive_f1"].value == pytest.approx(2 / 3)
    assert figures.ece.n == figures.ece_there.n == 1


def test_boxes_are_assigned_as_sa_cos_evaluator_does() -> None:
    """The best fitting pair leaves nothing for the other answer; the best sum of IoU gives both a box."""
    first = (0.0, 0.0, 6.0, 4.0)
    second = (0.0, 0.0, 4.0, 4.0)
    answers = (answer_of((0.0, 0.0, 5.0, 4.0), score=0.9), answer_of((0.0, 0.0, 8.0, 4.0), score=0.9))
    pair = replace(pair_of(1, "there", 0.9), answers=answers, boxes_xywh_px=(first, second))
    figures = absent_figures([pair, pair_of(2, "random", 0.1)])
    # 5 x 4 in 6 x 4 is 0.83 and on 4 x 4 is 0.8; 8 x 4 around them 0.75 and 0.5: 0.8 + 0.75 is the best sum.
    counts = [sum(fit >= 0.5 + 0.05 * step - 1e-9 for fit in (0.8, 0.75)) / 2 for step in range(10)]
    assert figures.saco["positive_f1"].value == pytest.approx(sum(counts) / 10, abs=1e-6)
