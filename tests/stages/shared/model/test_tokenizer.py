from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from stages.shared.model.load import usable_model
from stages.shared.model.recognise import recognise
from stages.shared.model.tokenizer import pieces_of, tokenizer_of
from tests.stages.shared.model.hugging_face import TEXTS, config_of, siglip_tokens


def test_clip_s_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    """Checked with open_clip's merges as transformers keeps them: no vocabulary can be downloaded here."""
    from transformers import CLIPTokenizer

    own = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(piece, piece): number for piece, number in own.encoder.items()}
    theirs = CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks))
    texts = [*TEXTS, "A  photo of a café, isn't it?", "word " * 100]
    tokens = theirs(texts, return_tensors="pt", max_length=77, padding="max_length", truncation=True)
    end = own.encoder["<end_of_text>"]
    ids = tokens.input_ids.masked_fill(tokens.attention_mask == 0, 0)
    assert torch.equal(ids, open_clip.tokenize(texts))
    assert (ids == end).sum(dim=1).tolist() == [1] * len(texts)


def test_a_siglip_s_sentencepiece_is_read_as_transformers_reads_it(siglip_source: tuple[Path, Any, Any]) -> None:
    texts = [*TEXTS, "", "Two DOGS, on the man's bike!", "xyz", "a red car " * 10, "the man  & some trees"]
    folder, _, tokenizer = siglip_source
    assert torch.equal(tokenizer_of(recognise(config_of(folder)))(texts), siglip_tokens(tokenizer, texts))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_siglip_s_tokenizer_json_is_read_as_transformers_reads_it(side: str, siglip_folder: Path) -> None:
    """Of the form of SigLIP 2: Gemma's, without a token at the beginning, with one at the end, filled up by <pad>."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, Siglip2Tokenizer

    (siglip_folder / "spiece.model").unlink()
    (siglip_folder / "tokenizer_config.json").unlink()
    letters = "▁adegnorstwc,!"
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {piece: k for k, piece in enumerate([*specials, *letters, "do", "dog", "▁r", "▁re"])}
    made = Siglip2Tokenizer(
        vocab=vocabulary, merges=[("d", "o"), ("do", "g"), ("▁", "r"), ("▁r", "e")], padding_side=side
    )
    template = TemplateProcessing(single="$A <eos>", pair="$A $B <eos>", special_tokens=[("<eos>", 1)])
    made.backend_tokenizer.post_processor = template
    made.save_pretrained(siglip_folder)
    tokenizer = AutoTokenizer.from_pretrained(siglip_folder)
    texts = ["a red dog", "Two DOGS, now!", "", "a dog and " * 5]
    expected = siglip_tokens(tokenizer, texts)
    found = tokenizer_of(recognise(config_of(siglip_folder)))(texts)
    assert torch.equal(found, expected)
    assert found[0].tolist()[-1 if side == "left" else 0] != 0
    assert (found == 1).sum(dim=1).tolist() == [1] * 4
    assert recognise(config_of(siglip_folder)).described_by.endswith("tokenizer.json")


def test_a_siglip_s_vocabulary_belongs_to_its_fingerprint(siglip_folder: Path) -> None:
    before = usable_model(config_of(siglip_folder)).fingerprint
    vocabulary = siglip_folder / "spiece.model"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"\x00")
    assert usable_model(config_of(siglip_folder)).fingerprint != before


# Places of tokens in a caption

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


def test_pieces_follow_each_other_in_whatever_way_a_text_is_cleaned_and_cut() -> None:
    pieces = pieces_of(tokenizer, "xylophonistically", 75)
    assert len(pieces) > 2
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == len("xylophonistically")
    canonical = SimpleTokenizer(clean="canonicalize")
    assert [(piece.start, piece.end) for piece in pieces_of(canonical, "Dogs, and-cats!", 75)][-1] == (10, 14)
    assert len(pieces_of(tokenizer, "dog " * 5000, 75)) == 75, "all that the model sees"
    assert pieces_of(tokenizer, " " * 3000 + "dog", 75)[0].word == 0, "it gives up on the place, not on the token"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("&;#x<> \u2019aE"), max_size=30))
def test_there_is_a_piece_for_every_token(caption: str) -> None:
    pieces = pieces_of(tokenizer, caption, 75)
    assert len(pieces) == min(75, len(tokenizer.encode(caption)))
    assert all(0 <= piece.start <= piece.end <= len(caption) for piece in pieces)
    assert [piece.word for piece in pieces] == sorted(piece.word for piece in pieces)
