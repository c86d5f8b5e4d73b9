import pytest

from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.pipelines import load_pipeline
from phrasebox.stages.phrases.stage import PhrasesStage


@pytest.fixture(scope="session")
def nlp():
    """The default spaCy pipeline with only what phrases need."""
    return load_pipeline(PhrasesConfig().packages[0], "en")


@pytest.fixture(scope="session")
def stage():
    """A phrases stage with default settings, ready."""
    ready = PhrasesStage(PhrasesConfig())
    ready.setup()
    return ready
