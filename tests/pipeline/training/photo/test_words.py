"""The texts that the model learns from, and the vocabulary that is cut from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from pipeline.training.photo.photographs import Photograph
from pipeline.training.photo.words import bare, collect, vocabulary_words, write_vocabulary


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("a red dog", "red dog"), ("the", "the"), ("two dogs", "two dogs"), ("her hat", "hat"), ("anteater", "anteater")],
)
def test_a_phrase_loses_its_determiner_and_nothing_else(phrase: str, expected: str) -> None:
    assert bare(phrase) == expected


def test_every_text_is_there_once_and_belongs_to_its_photographs() -> None:
    captions = (("a red dog runs on the grass", "a man sits"), ("a red dog runs on the grass",))
    texts = collect([Photograph(Path("x.tar"), f"{place}", each) for place, each in enumerate(captions)])
    assert len(set(texts.texts)) == len(texts.texts)
    named = [[texts.texts[place] for place in places] for places in texts.captions_of]
    assert named == [list(each) for each in captions]
    assert [sorted(texts.texts[place] for place in places) for places in texts.phrases_of] == [
        ["grass", "man", "red dog"],
        ["grass", "red dog"],
    ]
    assert all(place >= texts.captions for places in texts.phrases_of for place in places)


def test_words_used_twice_keep_clips_pieces_and_others_become_smaller_ones(tmp_path: Path) -> None:
    captions = ["a skateboarder jumps", "a skateboarder falls", "a xylophone falls"]
    words = vocabulary_words(captions)
    assert {"skateboarder", "falls", "photo"} <= set(words)
    assert "xylophone" not in words
    write_vocabulary(tmp_path / "bpe.txt.gz", words)
    tokenizer = SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz"), context_length=32)
    clips = SimpleTokenizer()
    assert len(tokenizer.encode("skateboarder")) == len(clips.encode("skateboarder"))
    assert len(tokenizer.encode("xylophone")) > len(clips.encode("xylophone"))
    assert tokenizer.decode(tokenizer.encode("xylophone")).strip() == "xylophone"
