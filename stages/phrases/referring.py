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
    longer = [
        expression
        for phrase in phrases
        if (expression := _expanded(doc, phrase)).end - expression.start > phrase.end - phrase.start
    ]
    longer = [_whole(expression, phrases) for expression in longer]
    longer.sort(key=lambda expression: (expression.start, -expression.end))
    kept: list[FoundPhrase] = []
    for expression in longer:
        if not kept or expression.end > kept[-1].end:
            kept.append(expression)
    return kept


def _expanded(doc: Any, phrase: FoundPhrase) -> FoundPhrase:
    belonging = set()
    waiting = [doc[phrase.head_token]]
    while waiting:
        token = waiting.pop()
        belonging.add(token.i)
        waiting.extend(child for child in token.children if child.dep_ not in _OTHER_PHRASE_DEPS)
    first = last = phrase.head_token
    while doc[first].idx > phrase.start:
        first -= 1
    while doc[last].idx + len(doc[last].text) < phrase.end:
        last += 1
    begin, end = first, last
    while begin - 1 in belonging:
        begin -= 1
    while end + 1 in belonging or (end + 2 in belonging and doc[end + 1].dep_ == "punct"):
        end += 1
    while begin < first and doc[begin].tag_ in _LOOSE_TAGS:
        begin += 1
    while end > last and doc[end].tag_ in _LOOSE_TAGS:
        end -= 1
    return replace(phrase, start=doc[begin].idx, end=doc[end].idx + len(doc[end].text))


def _whole(expression: FoundPhrase, phrases: Sequence[FoundPhrase]) -> FoundPhrase:
    """The expression with a phrase that its end cuts in two taken in whole."""
    for phrase in phrases:
        if phrase.start < expression.end < phrase.end:
            return replace(expression, end=phrase.end)
    return expression
