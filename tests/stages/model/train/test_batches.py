"""Batches: in order, never the same scene twice, and the same from one process or several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from stages.model.train.batches import Batch, PhraseBank, SceneBatches, load_batches, normalise
from stages.model.train.concepts import COLUMNS, bank_columns
from stages.model.train.config import Phase
from stages.model.train.loop import VOCABULARY_FILE, load_tokenizer
from stages.model.train.tokenizer import write_vocabulary

PHASE = Phase(name="one", steps=4, side_px=70, render_scale=1.5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    folder: Path = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder / VOCABULARY_FILE)
    return load_tokenizer(folder)


def batches(tokenizer: SimpleTokenizer, *, first: int, count: int) -> SceneBatches:
    return SceneBatches(tokenizer, PHASE, seed=1, size=4, first=first, count=count)


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.tokens, second.tokens)


def test_shapes(tokenizer: SimpleTokenizer) -> None:
    batch = next(iter(batches(tokenizer, first=0, count=1)))
    assert batch.images.shape == (4, 3, 70, 70)
    assert batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (4, 32)
    assert batch.present.shape == batch.claimed.shape == batch.denied.shape == (4, COLUMNS)


def test_going_on_gives_the_batches_that_would_have_come(tokenizer: SimpleTokenizer) -> None:
    whole = list(batches(tokenizer, first=0, count=3))
    rest = list(batches(tokenizer, first=1, count=2))
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))
    assert not same(whole[0], whole[1])


def test_worker_processes_give_the_same_batches_in_order(tokenizer: SimpleTokenizer) -> None:
    here = list(batches(tokenizer, first=0, count=3))
    there = list(load_batches(batches(tokenizer, first=0, count=3), workers=1))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_the_bank_words_every_concept_anew(tokenizer: SimpleTokenizer) -> None:
    bank = PhraseBank(tokenizer)
    assert bank.columns.tolist() == bank_columns()
    first = bank.tokens(torch.Generator().manual_seed(1))
    assert first.shape == (len(bank.columns), 32)
    assert torch.equal(first, bank.tokens(torch.Generator().manual_seed(1)))
    assert not torch.equal(first, bank.tokens(torch.Generator().manual_seed(2)))


def test_normalise_is_clip_s() -> None:
    grey = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert grey[0, 0, 0, 0] == pytest.approx((1 - 0.48145466) / 0.26862954, rel=1e-5)
