"""The parser that is loaded, and a parsed caption as lists."""

import pytest
import spacy

from stages.contract.errors import ConfigError
from stages.phrases.noun_phrases import load_pipeline
from stages.phrases.repairs import ParsedCaption
from stages.phrases.stage import PhrasesConfig
from tests.messages import expect_error


def test_only_the_components_that_are_needed_are_loaded(nlp):
    assert nlp.pipe_names == ["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer"]


def test_words_have_the_attributes_that_spacy_gives_them(nlp):
    plain = spacy.load(PhrasesConfig().spacy_model, exclude=["ner"])
    captions = [
        "Someone's dog is running and that one isn't.",
        "each of us, her dogs and  two others",
        "",
        "That dog ran",
    ]

    def attributes(pipeline):
        return [
            [(word.pos_, word.lemma_, word.tag_, word.dep_) for word in doc]
            for doc in pipeline.pipe(captions * 2)
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
    pipeline = load_pipeline(PhrasesConfig().spacy_model)
    assert pipeline.get_pipe("tok2vec").model.ops.use_blis == expected


def test_a_pipeline_that_cannot_be_used_is_rejected(tmp_path, monkeypatch):
    with expect_error(ConfigError):
        load_pipeline("en_core_web_xxl")
    blank = spacy.blank("en")
    blank.to_disk(tmp_path)
    with expect_error(ConfigError):
        load_pipeline(str(tmp_path))
    for part in ("tagger", "parser", "lemmatizer"):
        blank.add_pipe(part)
    blank.vocab.get_noun_chunks = None  # as for the languages that spaCy has no rules for
    monkeypatch.setattr(spacy, "load", lambda name, **options: blank)
    with expect_error(ConfigError):
        load_pipeline("any")


def test_hyphenated_words_are_whole(nlp):
    parsed = ParsedCaption.of(nlp("A close-up of her t-shirts."))
    assert parsed.words == ["a", "close", "-", "up", "of", "her", "t", "-", "shirts", "."]
    assert parsed.lemma(8) == "t-shirt"
    assert parsed.hyphen_range(1) == parsed.hyphen_range(2) == parsed.hyphen_range(3) == (1, 4)
    assert parsed.hyphen_range(5) == (5, 6)


@pytest.mark.parametrize(
    ("caption", "word", "has_verb"),
    [
        ("Boy in a yellow raincoat", "boy", False),
        ("A man with a tattoo on his arm.", "tattoo", False),
        ("a mini-trampoline", "-", False),
        ("Two dogs are asleep on the grass.", "grass", True),
    ],
)
def test_tags_are_put_right(nlp, caption, word, has_verb):
    parsed = ParsedCaption.of(nlp(caption))
    assert parsed.tags[parsed.words.index(word)] == ("HYPH" if word == "-" else "NN")
    assert parsed.has_verb == has_verb
