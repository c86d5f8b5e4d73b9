"""The parser that is loaded."""

import pytest
import spacy

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.pipelines import load_pipeline
from tests.messages import expect_error

(ENGLISH_PACKAGE,) = PhrasesConfig().packages


def test_words_have_the_attributes_that_spacy_gives_them(nlp):
    plain = spacy.load(ENGLISH_PACKAGE, exclude=["ner", "parser"])
    captions = [
        "Someone's dog is running and that one isn't.",
        "each of us, her dogs and  two others",
        "",
        "That dog ran",
    ]

    def attributes(pipeline):
        return [
            [(word.pos_, word.lemma_, word.tag_) for word in doc] for doc in pipeline.pipe(captions * 2)
        ]

    assert attributes(nlp) == attributes(plain)


@pytest.mark.parametrize(
    ("openblas", "openmp", "expected"), [("1", "8", False), ("8", "1", True), (None, "1", False)]
)
def test_numpy_multiplies_matrices_where_it_has_one_thread(openblas, openmp, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if openblas:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", openblas)
    pipeline = load_pipeline(ENGLISH_PACKAGE, "en")
    assert pipeline.get_pipe("tok2vec").model.ops.use_blis == expected


def test_a_pipeline_that_cannot_be_used_is_rejected(tmp_path, monkeypatch):
    with expect_error(ConfigError, key="phrases.spacy_models"):
        load_pipeline("en_core_web_xxl", "en")
    blank = spacy.blank("en")
    blank.to_disk(tmp_path)
    with expect_error(ConfigError, key="phrases.spacy_models"):
        load_pipeline(str(tmp_path), "de")
    with expect_error(ConfigError, key="phrases.spacy_models"):
        load_pipeline(str(tmp_path), "en")
    italian = spacy.blank("it")
    monkeypatch.setattr(spacy, "load", lambda name, **options: italian)
    for part in ("tagger", "lemmatizer"):
        italian.add_pipe(part)
    with expect_error(ConfigError, key="phrases.spacy_models"):
        load_pipeline("any", "it")
    italian.add_pipe("parser")
    italian.vocab.get_noun_chunks = None  # as for the languages that spaCy has no rules for
    with expect_error(ConfigError, key="phrases.spacy_models"):
        load_pipeline("any", "it")
