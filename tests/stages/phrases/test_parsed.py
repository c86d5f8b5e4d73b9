from __future__ import annotations

import pytest

from stages.phrases.parsed import Parsed


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
