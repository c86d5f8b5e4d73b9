from __future__ import annotations

import pytest

from stages.phrases.parsed import Candidate, Parsed

CAPTIONS = [
    "",
    "dog",
    "A young, bearded man and his two dogs sit in front of the old house, watching birds and a cat.",
    "Two women wearing hats give the boy , who is crying , some ice cream .",
    "She and I like the man's friend John Smith, a painter; he gave them water\u2019s taste - and that.",
    "men women and children",
]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_noun_phrases_are_spacys(nlp, caption):
    doc = nlp(caption)
    expected = [Candidate(chunk.start, chunk.end, chunk.end - 1) for chunk in doc.noun_chunks]
    assert Parsed.of(doc).noun_phrases() == expected


@pytest.mark.parametrize("caption", CAPTIONS)
def test_columns_are_those_of_the_tokens(nlp, caption):
    doc = nlp(caption)
    parsed = Parsed.of(doc)
    assert parsed.words == [token.lower_ for token in doc]
    assert parsed.parts == [token.pos_ for token in doc]
    assert parsed.relations == [token.dep_ for token in doc]
    assert parsed.heads == [token.head.i for token in doc]
    assert parsed.offsets == [token.idx for token in doc]
    assert parsed.lengths == [len(token) for token in doc]
    if "-" not in caption:
        assert [parsed.lemma(index) for index in range(len(doc))] == [token.lemma_.lower() for token in doc]


def test_hyphenated_words_are_whole(nlp):
    parsed = Parsed.of(nlp("A close-up of her t-shirts."))
    assert parsed.words == ["a", "close", "-", "up", "of", "her", "t", "-", "shirts", "."]
    assert parsed.lemma(8) == "t-shirt"
    assert parsed.hyphenated(1) == parsed.hyphenated(2) == parsed.hyphenated(3) == (1, 4)
    assert parsed.hyphenated(5) == (5, 6)


@pytest.mark.parametrize(
    ("caption", "word"),
    [("Boy in a yellow raincoat", "boy"), ("A man with a tattoo on his arm.", "tattoo"), ("a mini-trampoline", "-")],
)
def test_tags_are_put_right(nlp, caption, word):
    parsed = Parsed.of(nlp(caption))
    assert parsed.tags[parsed.words.index(word)] == ("HYPH" if word == "-" else "NN")


def test_whether_there_is_a_verb(nlp):
    assert not Parsed.of(nlp("two dogs on the grass")).has_verb
    assert Parsed.of(nlp("Two dogs are asleep on the grass.")).has_verb
