import pytest

from phrasebox.stages.phrases.noun_phrases import load_pipeline
from phrasebox.stages.phrases.stage import PhrasesConfig, PhrasesStage


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
