"""The cut vocabulary writes the scenes' words as CLIP's own does, and anything else somehow."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from stages.model.scenes.scene import make_scene
from stages.model.train.tokenizer import scene_words, write_vocabulary


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "bpe.txt.gz"
    write_vocabulary(path)
    return SimpleTokenizer(bpe_path=str(path), context_length=32)


@pytest.fixture(scope="module")
def full() -> SimpleTokenizer:
    return SimpleTokenizer()


def pieces(tokenizer: SimpleTokenizer, text: str) -> list[str]:
    return [tokenizer.decoder[token] for token in tokenizer.encode(text)]


def test_scene_words_become_the_same_pieces(small: SimpleTokenizer, full: SimpleTokenizer) -> None:
    for word in scene_words():
        assert pieces(small, word) == pieces(full, word)


def test_every_word_of_every_caption_is_one_token(small: SimpleTokenizer) -> None:
    for k in range(200):
        for caption in make_scene(1, k, side_px=64, split="train", max_objects=6, extra_captions=2).captions:
            text = caption.text.replace(",", "").replace(".", "")
            assert len(small.encode(text)) == len(text.split()), text
            assert len(small.encode(caption.text)) <= 30


def test_other_words_still_become_tokens(small: SimpleTokenizer) -> None:
    tokens = small(["Zwölf Boxkämpfer, 7 naïve zebras!"])[0]
    assert tokens[0] == small.sot_token_id
    assert small.eot_token_id in tokens


def test_the_end_token_is_the_greatest(small: SimpleTokenizer) -> None:
    """The text tower pools at the greatest token id."""
    assert small.eot_token_id == small.vocab_size - 1
    assert max(small.encoder.values()) == small.eot_token_id
    assert "" not in small.encoder


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "a.gz")
    write_vocabulary(tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
