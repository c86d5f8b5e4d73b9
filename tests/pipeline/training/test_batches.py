"""Batches in order and never the same scene twice; the truth table; a vocabulary that keeps the scenes' words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from pipeline.scenes.captions import HELDOUT_PAIRS
from pipeline.scenes.scene import make_scene
from pipeline.training.batches import (
    COLUMNS,
    CONCEPTS,
    PAIRS,
    VOCABULARY_FILE,
    Batch,
    PhraseBank,
    SceneBatches,
    bank_columns,
    bank_wordings,
    claims,
    known_true,
    present,
    scene_words,
    write_vocabulary,
)
from pipeline.training.drawn import Phase

PHASE = Phase(name="one", steps=4, side_px=70, render_scale=1.5)


def batches(tokenizer: SimpleTokenizer, *numbers: int) -> list[Batch]:
    return [SceneBatches(tokenizer, PHASE, seed=1, size=4)[number] for number in numbers]


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.tokens, second.tokens)


def test_a_resumed_training_gets_the_batches_that_would_have_come(tokenizer: SimpleTokenizer) -> None:
    whole = batches(tokenizer, 0, 1, 2)
    rest = batches(tokenizer, 1, 2)
    assert (whole[0].images.shape, whole[0].images.dtype) == ((4, 3, 70, 70), torch.uint8)
    assert whole[0].tokens.shape == (4, 32)
    assert whole[0].present.shape == whole[0].claimed.shape == whole[0].denied.shape == (4, COLUMNS)
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))
    assert not same(whole[0], whole[1])


def test_the_bank_words_every_concept_anew(tokenizer: SimpleTokenizer) -> None:
    bank = PhraseBank(tokenizer)
    assert bank.columns.tolist() == bank_columns()
    first = bank.tokens(torch.Generator().manual_seed(1))
    assert first.shape == (len(bank.columns), 32)
    assert torch.equal(first, bank.tokens(torch.Generator().manual_seed(1)))
    assert not torch.equal(first, bank.tokens(torch.Generator().manual_seed(2)))


def test_a_caption_is_true_if_all_claims_hold_and_nothing_denied_is_there() -> None:
    claimed = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    denied = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])
    present = torch.tensor([[1.0, 1, 0], [1, 0, 1]])
    expected = [[True, True, False, True], [True, False, True, False]]
    assert known_true(claimed, denied, present).tolist() == expected


def test_a_scene_s_captions_are_true_of_it() -> None:
    for k in range(150):
        scene = make_scene(2, k, side_px=64, split="train", max_objects=6, extra_captions=3)
        row = present(scene.objects)
        assert row.shape == (COLUMNS,)
        for caption in scene.captions:
            claimed, denied = claims(caption)
            assert claimed.sum() + denied.sum() > 0
            rows = [torch.from_numpy(values)[None] for values in (claimed, denied, row)]
            assert bool(known_true(*rows)), caption.text


def test_present_counts() -> None:
    scene = next(
        scene
        for scene in (make_scene(2, k, side_px=64, split="train", min_objects=3) for k in range(500))
        if len(scene.objects) == 3 and len({(thing.kind, thing.colour) for thing in scene.objects}) == 2
    )
    row = present(scene.objects)
    assert row[:PAIRS].sum() == 2
    assert row[CONCEPTS : CONCEPTS + PAIRS].sum() == 1
    assert np.flatnonzero(row[2 * CONCEPTS :]).tolist() == [3]


def test_the_bank_never_asks_for_a_heldout_pair() -> None:
    columns = bank_columns()
    assert len(columns) == CONCEPTS - len(HELDOUT_PAIRS)
    texts = {text for column in columns for text in bank_wordings(column)}
    assert not any(f"{colour} {kind}" in texts for kind, colour in HELDOUT_PAIRS)
    assert {"red fish", "a red fish", "two red fish", "fish", "something red"} <= texts | {
        "red fish" if ("fish", "red") in HELDOUT_PAIRS else ""
    }


@pytest.fixture(scope="module")
def full() -> SimpleTokenizer:
    return SimpleTokenizer()


def pieces(tokenizer: SimpleTokenizer, text: str) -> list[str]:
    return [tokenizer.decoder[token] for token in tokenizer.encode(text)]


def test_scene_words_become_the_same_pieces(tokenizer: SimpleTokenizer, full: SimpleTokenizer) -> None:
    for word in scene_words():
        assert pieces(tokenizer, word) == pieces(full, word)


def test_every_word_of_every_caption_is_one_token(tokenizer: SimpleTokenizer) -> None:
    for k in range(200):
        for caption in make_scene(1, k, side_px=64, split="train", max_objects=6, extra_captions=2).captions:
            text = caption.text.replace(",", "").replace(".", "")
            assert len(tokenizer.encode(text)) == len(text.split()), text
            assert len(tokenizer.encode(caption.text)) <= 30


def test_other_words_still_become_tokens_and_the_end_token_is_the_greatest(tokenizer: SimpleTokenizer) -> None:
    """The text tower pools at the greatest token id."""
    tokens = tokenizer(["Zwölf Boxkämpfer, 7 naïve zebras!"])[0]
    assert tokens[0] == tokenizer.sot_token_id
    assert tokenizer.eot_token_id in tokens
    assert tokenizer.eot_token_id == tokenizer.vocab_size - 1 == max(tokenizer.encoder.values())
    assert "" not in tokenizer.encoder


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        write_vocabulary(tmp_path, scene_words())
        contents.append((tmp_path / VOCABULARY_FILE).read_bytes())
    assert contents[0] == contents[1]
