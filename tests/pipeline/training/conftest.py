"""The vocabulary of the scenes, cut once."""

from __future__ import annotations

import pytest
from open_clip.tokenizer import SimpleTokenizer

from pipeline.training.batches import write_vocabulary
from pipeline.training.loop import VOCABULARY_FILE, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder / VOCABULARY_FILE)
    return load_tokenizer(folder)
