"""The scenes' vocabulary."""

from __future__ import annotations

import pytest
from open_clip.tokenizer import SimpleTokenizer

from pipeline.training.batches import load_vocabulary, scene_words, write_vocabulary


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder, scene_words())
    return load_vocabulary(folder)
