"""spaCy's pipelines, with only the parts for phrases. No other module loads spaCy."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.phrases.caption import NOUN_TAGS
from phrasebox.stages.phrases.french_words import FrenchWords
from phrasebox.stages.phrases.languages import grammar_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.phrases.languages.packages import how_to_install

KEY: Final = "phrases.spacy_models"
"""The setting that names pipelines, for errors."""

_TAGGERS: Final = ("tagger", "morphologizer")
"""Parts that know parts of speech. The rules for English need those of the first."""

_LEMMAS_BY_TOKENIZER: Final = frozenset({"ja"})
_NOT_NEEDED: Final = [
    "ner",
    "senter",
    "entity_linker",
    "entity_ruler",
    "span_ruler",
    "textcat",
    "textcat_multilabel",
]
_RULER: Final = "attribute_ruler"
_RULED_BY: Final = ["ORTH", "TAG", "DEP", "POS", "MORPH"]
_PLURALS: Final = "plural_nouns"
_FRENCH_WORDS: Final = "french_words"
_MAX_REMEMBERED: Final = 100_000  # words, 0.3 kB each


def load_pipeline(name: str, language: str) -> Any:
    """Load a spaCy pipeline with only the parts for phrases: tagger, lemmatizer and their dependencies.

    A language without a grammar of ours needs its parser, too, which finds its noun chunks.

    language: spaCy's code of the language that the pipeline has to be for.

    Raise ConfigError if it is not installed, lacks a part, is for another language, or spaCy has no
    noun phrases in its language.
    """
    import spacy  # noqa: PLC0415 - it takes seconds: only a worker that parses pays for it
    from thinc.api import use_ops  # noqa: PLC0415 - a part of spaCy

    # numpy multiplies matrices 3 times as fast as spaCy's own BLIS. On several cores it costs more than it gains.
    threads = os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS"))
    try:
        with use_ops("numpy", use_blis=threads != "1"):
            nlp = spacy.load(name, exclude=[*_NOT_NEEDED, *([] if _needs_parser(language) else ["parser"])])
    except (OSError, ImportError) as error:  # some languages need a library of their own
        raise ConfigError(f"no spaCy pipeline {name!r} here: {how_to_install(name)}", key=KEY) from error
    _check_parts(nlp, name, language)
    if language == ENGLISH_CODE:
        lemmatizer = nlp.get_pipe("lemmatizer")
        if lemmatizer.mode == "rule":
            lemmatizer.lemmatize = _remembering(lemmatizer.lemmatize)
            spacy.Language.factory(_PLURALS, func=_PluralNouns)
            nlp.add_pipe(_PLURALS, before="lemmatizer")
        if nlp.has_pipe(_RULER):
            ruler = nlp.get_pipe(_RULER)
            ruler.matcher = _WordMatcher(ruler.matcher)
    if language == "fr" and getattr(nlp.get_pipe("lemmatizer"), "mode", None) == "rule":
        spacy.Language.factory(_FRENCH_WORDS, func=FrenchWords)
        nlp.add_pipe(_FRENCH_WORDS, before="lemmatizer")
    return nlp


def _check_parts(nlp: Any, name: str, language: str) -> None:
    """Raise ConfigError for a pipeline of another language, or without a part."""
    if nlp.lang != language:
        raise ConfigError(
            f"the spaCy pipeline {name!r} is for the language {nlp.lang!r}, expected one for {language!r}",
            key=KEY,
        )
    taggers = _TAGGERS[:1] if language == ENGLISH_CODE else _TAGGERS
    needed = {"parser": _needs_parser(language), "lemmatizer": language not in _LEMMAS_BY_TOKENIZER}
    missing = [part for part, is_needed in needed.items() if is_needed and part not in nlp.pipe_names]
    if not set(taggers) & set(nlp.pipe_names):
        missing.insert(0, " or ".join(taggers))
    if missing:
        raise ConfigError(
            f"the spaCy pipeline {name!r} has no {', '.join(missing)}; got {', '.join(nlp.pipe_names)}",
            key=KEY,
        )
    if _needs_parser(language) and nlp.vocab.get_noun_chunks is None:
        raise ConfigError(f"spaCy finds no noun phrases in the language {nlp.lang!r} of {name!r}", key=KEY)


def _needs_parser(language: str) -> bool:
    """Whether spaCy's noun chunks are the phrases of a language, which need a dependency parser."""
    return grammar_of(language).method == "chunks"


class _WordMatcher:
    """Remembers the matching rules of spaCy's attribute ruler for each word with its tag and relation.

    spaCy's matcher tries every rule at every word: 180 rules in English, a quarter of the time
    of parsing. Rules about several words never match here. The English ones are about verbs and
    pronouns ("gon na", "let 's"); no phrase depends on these.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._rules: dict[bytes, list[int]] = {}

    def __call__(self, doc: Any, **options: Any) -> list[tuple[int, int, int]]:
        """Return the matching rules of each word of a Doc, as (rule, start, end)."""
        if len(self._rules) > _MAX_REMEMBERED:
            self._rules.clear()
        matches = []
        for index, attributes in enumerate(doc.to_array(_RULED_BY)):
            word = attributes.tobytes()
            if word not in self._rules:
                self._rules[word] = [rule for rule, *_ in self._matcher(doc[index : index + 1], **options)]
            matches += [(rule, index, index + 1) for rule in self._rules[word]]
        return matches


def _remembering(lemmatize: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    """Return spaCy's rules for lemmas, which remember each word with its part of speech and forms.

    They tell the base form of a word again each time, which takes a quarter of the time of parsing.
    """
    lemmas: dict[tuple[int, int, int], list[str]] = {}

    def lemmas_of(token: Any) -> list[str]:
        word = (token.orth, token.pos, token.morph.key)
        if word not in lemmas:
            if len(lemmas) > _MAX_REMEMBERED:
                lemmas.clear()
            lemmas[word] = lemmatize(token)
        return lemmas[word]

    return lemmas_of


class _PluralNouns:
    """Tags plural English nouns that the tagger takes for a name or a singular: "Dogs | chase each other", "bikinis".

    A word is one if the lemmatizer's list of nouns has its singular, and not the word itself. Names in
    the singular that have a capital within a caption stay: "the United States".
    """

    def __init__(self, nlp: Any, name: str) -> None:
        lookups = nlp.get_pipe("lemmatizer").lookups
        self._nouns = frozenset(lookups.get_table("lemma_index", {}).get("noun", ()))  # a list in the table
        self._strings = nlp.vocab.strings
        self._is_plural = lru_cache(_MAX_REMEMBERED)(self._has_singular)
        self._endings = lookups.get_table("lemma_rules", {}).get("noun", ())

    def __call__(self, doc: Any) -> Any:
        """Correct the tags of a Doc in place, and return it."""
        for index, word in enumerate(doc.to_array("LOWER").tolist()):
            if not self._is_plural(word):
                continue
            token = doc[index]
            is_name = token.tag_ == "NNP" and index > 0 and not token.is_lower
            if token.tag_ in NOUN_TAGS - {"NNS"} and not is_name:
                token.tag_ = "NNS"
                token.pos_ = "NOUN"
                token.set_morph("Number=Plur")
        return doc

    def _has_singular(self, number: int) -> bool:
        """Return whether the word with this number in the vocabulary is the plural of a listed noun."""
        word = self._strings[number]
        return (
            word.endswith("s")
            and word not in self._nouns
            and any(
                word.removesuffix(ending) + singular in self._nouns
                for ending, singular in self._endings
                if word.endswith(ending)
            )
        )
