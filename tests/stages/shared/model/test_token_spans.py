from __future__ import annotations

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from stages.shared.model.token_spans import pieces_of

tokenizer = open_clip.get_tokenizer("ViT-B-32")

CAPTIONS = {
    "A red car.": ["A", "red", "car", "."],
    "  Two\tdogs  run ": ["Two", "dogs", "run"],
    "the dog's ball": ["the", "dog", "'s", "ball"],
    "Caf\u00e9 &amp; bar": ["Caf\u00e9", "&", "bar"],
    "a \U0001f415 in \u4e0a\u6d77": ["a", "\U0001f415", "in", "\u4e0a\u6d77"],
    "\u0130stanbul by": ["\u0130", "\u0130", "stanbul", "by"],  # in lower case its first letter is two characters
    "don\u2019t walk": ["don", "\u2019t", "walk"],
    "": [],
    " \n ": [],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_words_stand_for_their_characters(caption: str) -> None:
    pieces = pieces_of(tokenizer, caption, 75)
    words = [
        caption[min(piece.start for piece in own) : max(piece.end for piece in own)]
        for number in range(len(CAPTIONS[caption]))
        if (own := [piece for piece in pieces if piece.word == number])
    ]
    assert words == CAPTIONS[caption]


def test_pieces_of_a_long_word_follow_each_other() -> None:
    pieces = pieces_of(tokenizer, "xylophonistically", 75)
    assert len(pieces) > 2
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == len("xylophonistically")


def test_other_ways_of_cleaning() -> None:
    canonical = SimpleTokenizer(clean="canonicalize")
    assert [(piece.start, piece.end) for piece in pieces_of(canonical, "Dogs, and-cats!", 75)][-1] == (10, 14)


def test_only_what_the_model_sees() -> None:
    assert len(pieces_of(tokenizer, "dog " * 5000, 75)) == 75
    assert pieces_of(tokenizer, " " * 3000 + "dog", 75)[0].word == 0, "it gives up on the place, not on the token"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("&;#x<> \u2019aE"), max_size=30))
def test_there_is_a_piece_for_every_token(caption: str) -> None:
    pieces = pieces_of(tokenizer, caption, 75)
    assert len(pieces) == min(75, len(tokenizer.encode(caption)))
    assert all(0 <= piece.start <= piece.end <= len(caption) for piece in pieces)
    assert [piece.word for piece in pieces] == sorted(piece.word for piece in pieces)
