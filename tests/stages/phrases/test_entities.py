"""Quality against human mark-up, exact spans: a guard against getting worse, on captions written for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from stages.phrases.filters import DETERMINERS, WordLists, word_lists
from stages.phrases.noun_phrases import extract

Span = tuple[int, int]

_MARK = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]*)\]")


class Marked(NamedTuple):
    caption: str
    visual: frozenset[Span]


def read_marked(path: Path) -> list[Marked]:
    captions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        text, spans, last = "", set(), 0
        for match in _MARK.finditer(line):
            text += line[last : match.start()]
            start = len(text)
            text += match.group(2)
            if match.group(1) != "0":
                spans.add(without_determiner(text, start, len(text)))
            last = match.end()
        captions.append(Marked(text + line[last:], frozenset(spans)))
    return captions


def without_determiner(text: str, start: int, end: int) -> Span:
    while (space := text.find(" ", start, end)) >= 0 and text[start:space].lower() in DETERMINERS:
        start = space + 1
    return start, end


def f1(marked: Sequence[Marked], found: Sequence[set[Span]]) -> float:
    right = sum(len(gold.visual & spans) for gold, spans in zip(marked, found, strict=True))
    return 2 * right / sum(len(gold.visual) + len(spans) for gold, spans in zip(marked, found, strict=True))


MARKED = read_marked(Path(__file__).with_name("entities.txt"))


def spans_of(nlp: object, lists: WordLists, *, keep_parts: bool) -> list[set[Span]]:
    docs = nlp.pipe([gold.caption for gold in MARKED])  # type: ignore[attr-defined]
    return [
        {
            without_determiner(gold.caption, phrase.start, phrase.end)
            for phrase in extract(doc, lists, keep_parts=keep_parts)
        }
        for gold, doc in zip(MARKED, docs, strict=True)
    ]


@pytest.mark.parametrize(("keep_parts", "at_least"), [(True, 0.93), (False, 0.91)])
def test_phrases_agree_with_the_mark_up(nlp, keep_parts, at_least):
    score = f1(MARKED, spans_of(nlp, word_lists(), keep_parts=keep_parts))
    assert score >= at_least


def test_phrases_beat_plain_noun_chunks(nlp):
    chunks = [
        {without_determiner(gold.caption, chunk.start_char, chunk.end_char) for chunk in doc.noun_chunks}
        for gold, doc in zip(MARKED, nlp.pipe([gold.caption for gold in MARKED]), strict=True)
    ]
    assert f1(MARKED, spans_of(nlp, word_lists(), keep_parts=True)) > f1(MARKED, chunks) + 0.08
