"""Phrases of long captions against human mark-up, exact spans, and the links between them within a caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from stages.contract.records import Phrase, Record, Sample
from stages.phrases.stage import PhrasesConfig, PhrasesStage
from stages.regions.groups import link_phrases
from tests.stages.phrases.test_entities import Span, f1_of, without_determiner

_MARK = re.compile(r"\[(\d+) ([^\]]*)\]")


class LongCaption(NamedTuple):
    """A caption of the file: its name, its text, and the thing of each phrase that is marked up."""

    name: str
    text: str
    things: dict[Span, int]

    @classmethod
    def of(cls, line: str) -> LongCaption:
        name, _, marked = line.partition(": ")
        text = ""
        things = {}
        last = 0
        for match in _MARK.finditer(marked):
            text += marked[last : match.start()]
            start = len(text)
            text += match.group(2)
            things[without_determiner(text, start, len(text))] = int(match.group(1))
            last = match.end()
        return cls(name, text + marked[last:], things)


LINES = Path(__file__).with_name("long_captions.txt").read_text(encoding="utf-8").splitlines()
LONG = [LongCaption.of(line) for line in LINES if line and not line.startswith("#")]


def part(name: str) -> list[LongCaption]:
    return [caption for caption in LONG if caption.name.startswith(name)]


def phrases_of(captions: Sequence[LongCaption], stage: PhrasesStage) -> list[list[Phrase]]:
    samples = [Sample(sample_id=caption.name, source="", captions=(caption.text,)) for caption in captions]
    return [list(record.phrases) for record in stage.process([Record.start(sample) for sample in samples])]


def spans_of(caption: LongCaption, phrases: Sequence[Phrase]) -> dict[Span, Phrase]:
    return {without_determiner(caption.text, phrase.start, phrase.end): phrase for phrase in phrases}


def phrase_f1(captions: Sequence[LongCaption], phrases: Sequence[Sequence[Phrase]]) -> float:
    return f1_of(
        [set(caption.things) for caption in captions],
        [set(spans_of(caption, own)) for caption, own in zip(captions, phrases, strict=True)],
    )


def pair_f1(captions: Sequence[LongCaption], phrases: Sequence[Sequence[Phrase]]) -> float:
    """F1 of pairs of phrases of one caption that name one thing, among the phrases that the mark-up knows."""
    linked: set[tuple[str, int, int]] = set()
    truly: set[tuple[str, int, int]] = set()
    for caption, all_phrases in zip(captions, phrases, strict=True):
        things = caption.things
        own = [phrase for span, phrase in spans_of(caption, all_phrases).items() if span in things]
        groups = link_phrases([caption.text], own)
        gold = [things[without_determiner(caption.text, phrase.start, phrase.end)] for phrase in own]
        for i, j in combinations(range(len(own)), 2):
            if groups[i] == groups[j]:
                linked.add((caption.name, i, j))
            if gold[i] == gold[j]:
                truly.add((caption.name, i, j))
    return 2 * len(linked & truly) / (len(linked) + len(truly))


@pytest.fixture(scope="module")
def unlimited() -> PhrasesStage:
    """A phrases stage without a limit on phrases."""
    stage = PhrasesStage(PhrasesConfig(max_phrases=1000))
    stage.setup()
    return stage


def test_phrases_of_long_captions_agree_with_the_mark_up(unlimited: PhrasesStage) -> None:
    report = part("report")
    assert phrase_f1(report, phrases_of(report, unlimited)) >= 0.92


def test_phrases_of_one_caption_that_name_one_thing_are_linked(unlimited: PhrasesStage) -> None:
    report = part("report")
    assert pair_f1(report, phrases_of(report, unlimited)) >= 0.80


def test_the_captions_are_long_and_half_of_them_are_for_the_report() -> None:
    assert len(part("report")) == len(part("develop")) == 20
    assert all(50 <= len(caption.text.split()) <= 200 for caption in LONG)
