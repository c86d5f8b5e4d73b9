from __future__ import annotations

import pytest

from stages.phrases.noun_phrases import load_pipeline
from stages.phrases.stage import Config, PhrasesStage


@pytest.fixture(scope="session")
def nlp():
    """The default spaCy pipeline with only what phrases need."""
    return load_pipeline(Config().spacy_model)


@pytest.fixture(scope="session")
def stage():
    """A phrases stage with default settings, ready."""
    ready = PhrasesStage(Config())
    ready.setup()
    return ready
