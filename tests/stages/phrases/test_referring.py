from __future__ import annotations

import pytest

from stages.phrases.filters import word_lists
from stages.phrases.noun_phrases import extract, referring_expressions


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog in a field of flowers", ["a dog in a field of flowers"]),
        ("A dog.", []),
        ("The girl who wears a hat is holding an umbrella.", ["The girl who wears a hat"]),
        # conjuncts are not joined
        ("A man and a woman riding horses on the beach.", ["a woman riding horses on the beach"]),
        ("A red car next to a small blue fish and three yellow stars.", ["A red car next to a small blue fish"]),
        # an expression inside another is left out
        ("a hat on the head of a man in a boat", ["a hat on the head of a man in a boat"]),
        # no phrase is cut in two
        ("man wearing a long-sleeved, checked shirt", ["man wearing a long-sleeved, checked shirt"]),
        ("", []),
    ],
)
def test_expressions(nlp, caption, expected):
    doc = nlp(caption)
    expressions = referring_expressions(doc, extract(doc, word_lists()))
    assert [caption[expression.start : expression.end] for expression in expressions] == expected


def test_head_and_number_are_those_of_the_phrase(nlp):
    doc = nlp("two zebras standing in a grassy field")
    (zebras, _), (expression,) = (phrases := extract(doc, word_lists())), referring_expressions(doc, phrases)
    assert (expression.head, expression.plural, expression.head_token) == (zebras.head, True, zebras.head_token)
