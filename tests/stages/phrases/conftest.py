from __future__ import annotations

import functools

import pytest

from stages.phrases import stage as stage_module
from stages.phrases.noun_phrases import load_pipeline
from stages.phrases.stage import PhrasesConfig, PhrasesStage


@pytest.fixture(scope="session", autouse=True)
def one_pipeline():
    """Each spaCy pipeline is loaded once for all stages, which only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "load_pipeline", functools.cache(load_pipeline))
        yield


@pytest.fixture(scope="session")
def nlp():
    """The default spaCy pipeline with only what phrases need."""
    return load_pipeline(PhrasesConfig().spacy_model)


@pytest.fixture(scope="session")
def stage():
    """A phrases stage with default settings, ready."""
    ready = PhrasesStage(PhrasesConfig())
    ready.setup()
    return ready
