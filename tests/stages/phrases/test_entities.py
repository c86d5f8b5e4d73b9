"""Quality against human mark-up, exact spans: a guard against getting worse, on captions written for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.phrases.filters import DETERMINERS, word_lists
from stages.phrases.noun_phrases import extract

Span = tuple[int, int]

_MARK = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]*)\]")


class Marked(NamedTuple):
    caption: str
    visual: frozenset[Span]

    @classmethod
    def of(cls, line: str) -> Marked:
        text = ""
        spans = set()
        last = 0
        for match in _MARK.finditer(line):
            text += line[last : match.start()]
            start = len(text)
            text += match.group(2)
            if match.group(1) != "0":
                spans.add(without_determiner(text, start, len(text)))
            last = match.end()
        return cls(text + line[last:], frozenset(spans))


def without_determiner(text: str, start: int, end: int) -> Span:
    while (space := text.find(" ", start, end)) >= 0 and text[start:space].lower() in DETERMINERS:
        start = space + 1
    return start, end


def f1_of(marked: Sequence[AbstractSet[Span]], predicted: Sequence[AbstractSet[Span]]) -> float:
    right = sum(len(gold & spans) for gold, spans in zip(marked, predicted, strict=True))
    return 2 * right / sum(len(gold) + len(spans) for gold, spans in zip(marked, predicted, strict=True))


LINES = Path(__file__).with_name("entities.txt").read_text(encoding="utf-8").splitlines()
MARKED = [Marked.of(line) for line in LINES if line.strip() and not line.startswith("#")]


def test_phrases_agree_with_the_mark_up_better_than_plain_noun_chunks(nlp):
    docs = list(nlp.pipe([gold.caption for gold in MARKED]))

    def score(spans: Callable[[Any], list[Span]]) -> float:
        pairs = zip(MARKED, docs, strict=True)
        predicted = [
            {without_determiner(gold.caption, *span) for span in spans(doc)} for gold, doc in pairs
        ]
        return f1_of([gold.visual for gold in MARKED], predicted)

    def by_us(doc: Any, *, keep_parts: bool) -> list[Span]:
        return [(each.start, each.end) for each in extract(doc, word_lists(), keep_parts=keep_parts)]

    chunks = score(lambda doc: [(chunk.start_char, chunk.end_char) for chunk in doc.noun_chunks])
    assert score(partial(by_us, keep_parts=True)) >= max(0.93, chunks + 0.08)
    assert score(partial(by_us, keep_parts=False)) >= 0.91
