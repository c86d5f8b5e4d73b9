"""Referring expressions: a phrase with everything that says which one, as GRIT makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from stages.phrases.noun_phrases import FoundPhrase

_OTHER_PHRASE_DEPS: Final = frozenset({"conj", "cc", "preconj", "punct", "appos"})
_LOOSE_TAGS: Final = frozenset({",", ".", ":", "CC", "``", "''", "-LRB-", "-RRB-", "_SP"})


def referring_expressions(doc: Any, phrases: Sequence[FoundPhrase]) -> list[FoundPhrase]:
    """The phrases expanded along the dependency tree, in order: "a dog" -> "a dog in a field of flowers".

    As Kosmos-2's GRIT (arXiv 2306.14824, sec. 2.1): the head's children are joined to the phrase recursively,
    conjuncts are not, and an expression inside another one is left out. Two deviations: an apposition is not joined
    either (it names the thing again), and an expression equal to its phrase is left out, because the phrase is
    there already. Head and number are those of the phrase.
    """
    expanded = [
        longer for phrase in phrases if (longer := _expanded(doc, phrase)).end - longer.start > phrase.end - phrase.start
    ]
    return [
        expression
        for expression in expanded
        if not any(
            other is not expression and other.start <= expression.start and expression.end <= other.end
            for other in expanded
        )
    ]


def _expanded(doc: Any, phrase: FoundPhrase) -> FoundPhrase:
    belonging = set()
    waiting = [doc[phrase.head_token]]
    while waiting:
        token = waiting.pop()
        belonging.add(token.i)
        waiting.extend(child for child in token.children if child.dep_ not in _OTHER_PHRASE_DEPS)
    inside = [token.i for token in doc if phrase.start <= token.idx < phrase.end]
    first, last = inside[0], inside[-1]
    while first - 1 in belonging:
        first -= 1
    while last + 1 in belonging or (last + 2 in belonging and doc[last + 1].dep_ == "punct"):
        last += 1
    while doc[first].tag_ in _LOOSE_TAGS and first < inside[0]:
        first += 1
    while doc[last].tag_ in _LOOSE_TAGS and last > inside[-1]:
        last -= 1
    return replace(phrase, start=doc[first].idx, end=doc[last].idx + len(doc[last].text))
