from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.tokenizer import ClipTokenizer, tokenizer_of
from tests.stages.model.hugging_face import TEXTS, config_of, siglip_tokens


def test_clip_s_tokenizer_is_open_clip_s() -> None:
    """Also of plain words, which are encoded once."""
    tokenizer = ClipTokenizer(context_length=77)
    texts = [*TEXTS, "A  photo of a café, isn't it?", "word " * 100, "two  plain words", " dog", "t1"]
    for _ in range(2):
        assert torch.equal(tokenizer(texts), open_clip.tokenize(texts))


PIECES = st.sampled_from(
    [
        "dog",
        "Dog's",
        "a",
        "T-shirt",
        "&amp;",
        "& ",
        "<b>",
        "<end_of_text>",
        "'S",
        "``",
        "_",
        "10%",
        "é",
        "\t",
        "\x1b[0m",
        "#",
    ]
)


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
@given(
    text=st.text(st.characters(max_codepoint=0x2FF))
    | st.lists(PIECES).map(" ".join)
    | st.lists(PIECES).map("".join)
)
def test_tokens_of_any_text_are_open_clip_s(clean: str, text: str) -> None:
    """Whether its words are encoded one by one, as most are, or all at once."""
    ours, theirs = tokenizers(clean)
    for _ in range(2):
        assert torch.equal(ours([text, "a dog"]), theirs([text, "a dog"]))


@cache
def tokenizers(clean: str) -> tuple[ClipTokenizer, Any]:
    return ClipTokenizer(clean=clean), open_clip.tokenizer.SimpleTokenizer(clean=clean)


def test_a_tokenizer_forgets_words_at_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and names of files in captions never end."""
    monkeypatch.setattr("phrasebox.stages.model.tokenizer._MOST_WORDS", 10)
    tokenizer = ClipTokenizer()
    for number in range(50):
        assert torch.equal(tokenizer([f"file {number} .jpg"]), open_clip.tokenize([f"file {number} .jpg"]))
    assert len(tokenizer._words) <= 13


def test_a_siglip_s_sentencepiece_is_read_as_transformers_reads_it(
    siglip_source: tuple[Path, Any, Any],
) -> None:
    texts = [*TEXTS, "", "Two DOGS, on the man's bike!", "xyz", "a red car " * 10, "the man  & some trees"]
    folder, _, tokenizer = siglip_source
    assert torch.equal(tokenizer_of(describe(config_of(folder)))(texts), siglip_tokens(tokenizer, texts))


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
    merges = [("d", "o"), ("do", "g"), ("▁", "r"), ("▁r", "e")]
    siglip_tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=merges, padding_side=side)
    template = TemplateProcessing(single="$A <eos>", pair="$A $B <eos>", special_tokens=[("<eos>", 1)])
    siglip_tokenizer.backend_tokenizer.post_processor = template
    siglip_tokenizer.save_pretrained(siglip_folder)
    tokenizer = AutoTokenizer.from_pretrained(siglip_folder)
    texts = ["a red dog", "Two DOGS, now!", "", "a dog and " * 5]
    expected = siglip_tokens(tokenizer, texts)
    tokens = tokenizer_of(describe(config_of(siglip_folder)))(texts)
    assert torch.equal(tokens, expected)
    assert tokens[0].tolist()[-1 if side == "left" else 0] != 0
    assert (tokens == 1).sum(dim=1).tolist() == [1] * 4
    assert describe(config_of(siglip_folder)).described_by.endswith("tokenizer.json")
