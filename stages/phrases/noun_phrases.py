"""The noun phrases of a caption that name an object in the image, from what a spaCy pipeline says of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from phrasebox.stages.phrases.caption import (
    NOUN_TAGS,
    PLURAL_TAGS,
    Candidate,
    Candidates,
    ParsedCaption,
)
from phrasebox.stages.phrases.filters import WordLists, is_code
from phrasebox.stages.phrases.groups_of_words import find_groups
from phrasebox.stages.phrases.languages.grammar import Grammar
from phrasebox.stages.phrases.repairs import repair_noun_phrases

_PRONOUN_TAGS: Final = frozenset({"PRP", "PRP$", "DT", "PDT", "WDT", "WP", "EX", "CD", "CC", ",", "."})
_DETERMINER_TAGS: Final = frozenset({"DT", "PRP$", "CD"})
_VERB_TAGS: Final = frozenset({"VB", "VBG", "VBN"})
_MAX_WORDS: Final = 30  # the longest phrase of Flickr30k Entities has 19; longer ones are lists of words

CLOTHING: Final = "clothing"
"""The head of a colour that is worn: "a man in | black", "dressed in | red and white"."""


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


def extract(
    doc: Any, lists: WordLists, grammar: Grammar, *, keep_parts: bool = False
) -> list[ParsedPhrase]:
    """Return the phrases of one parsed caption, a spaCy Doc, in order, without overlap.

    The noun phrases of English are base phrases, repaired (`phrasebox.stages.phrases.repairs`). Those
    of other languages with tables are groups of words, and those of all others spaCy's noun chunks.
    They are joined over "of". Those that name nothing in the image are left out: pronouns, numbers
    and codes, the heads of `lists.drop`, the bare nouns of `lists.frame`.

    Noun phrases around "of" become one phrase, as in Flickr30k Entities: "the roof of a house",
    "a plate of food". With a quantity the head is what is counted: "a group of friends" has the
    head "friend". With a frame only the complement is left: "a photo of a dog" and "the side of
    a dog" are the dog, unless `keep_parts` keeps the frame, as in Flickr30k Entities ("the side
    of a dog", head "dog").
    """
    caption = ParsedCaption.of(doc, grammar)
    phrases = _join_over_of(caption, _candidates(caption, lists), lists, keep_parts=keep_parts)
    return [
        _make_phrase(caption, phrase, lists)
        for phrase in phrases
        if _names_an_object(caption, phrase, lists)
    ]


def _candidates(caption: ParsedCaption, lists: WordLists) -> Candidates:
    """Return the noun phrases of a caption by the method of its language."""
    match caption.grammar.method:
        case "repairs":
            return repair_noun_phrases(caption, lists)
        case "groups":
            return find_groups(caption, lists)
        case "chunks":
            return caption.noun_phrases()


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
    tags = caption.tags
    joined: list[_JoinedPhrase] = []
    for start, end, head in reversed(candidates):
        right = joined[-1] if joined else None
        lemma = caption.lemma(head)
        plural = tags[head] in PLURAL_TAGS
        link = None if right is None else _link(caption, Candidate(start, end, head), right, lists)
        if right is None or link is None:
            joined.append(_JoinedPhrase(start, end, head, plural, start))
        elif link == "part":
            joined[-1] = _JoinedPhrase(start, right.end, head, plural, start)
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


def _link(
    caption: ParsedCaption, left: Candidate, right: _JoinedPhrase, lists: WordLists
) -> Literal["of", "part"] | None:
    """Return how a noun phrase belongs to the one before it: over "of", or as its part; None if it does not."""
    grammar = caption.grammar
    between = caption.words[left.end : right.reach]
    has_determiner = caption.tags[right.reach] in _DETERMINER_TAGS
    first = caption.words[right.reach]  # "une bougie à gauche du bus", of which only the bus is left
    head = caption.words[right.head]
    match between:
        case [word] if word in grammar.of:
            return "of"
        case [word] if word in grammar.joins_bare and not has_determiner:
            return None if {first, head} & grammar.joined_to_none else "part"
        case [word] if word in grammar.joins_materials and not has_determiner:
            return "part" if head in grammar.materials else None
        case [] if grammar.genitives:
            is_genitive = has_determiner and first in grammar.genitives
            is_counted = not has_determiner and caption.lemma(left.head) in lists.quantity
            return "of" if is_genitive or is_counted else None
    return None


def _with_count(caption: ParsedCaption, phrase: _JoinedPhrase) -> _JoinedPhrase:
    """Add the number that counts a phrase: "two of the dogs"."""
    grammar = caption.grammar
    start = phrase.reach
    number, of = caption.words[start - 2 : start] if start >= 2 else ("", "")
    is_counted = of in grammar.of and number in grammar.counts_of and phrase.start == start
    if not is_counted or _is_pronoun(caption, phrase.head):
        return phrase
    return phrase._replace(start=start - 2, plural=phrase.plural and number not in grammar.single_counts)


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
    is_frame = lemma in lists.frame and not _is_made(caption, start, lemma)
    if bare and (lemma in lists.bare or (is_frame and caption.tags[start] != "PRP$")):
        return False  # "her back" is an object, "the back" is not
    if end == head + 1 and word in lists.colour - lists.object_like_colour and not caption.is_worn(start):
        return False  # "two dogs, one brown"
    ending = caption.grammar.verbal_ending
    is_verbal = bool(ending) and word.endswith(ending) and word not in lists.thing_in_ing
    return not (end - start == 1 and is_verbal)


def _is_made(caption: ParsedCaption, start: int, lemma: str) -> bool:
    """Return whether somebody makes what a frame names: "prend des photos"."""
    grammar = caption.grammar
    if not start or lemma not in grammar.made:
        return False
    return caption.tags[start - 1] in _VERB_TAGS or caption.words[start - 1] in grammar.for_


def _make_phrase(caption: ParsedCaption, phrase: _JoinedPhrase, lists: WordLists) -> ParsedPhrase:
    last = phrase.end - 1
    word = caption.words[phrase.head]
    before = caption.words[phrase.start : phrase.head]
    ends_in_head = last == phrase.head
    several = any(
        number in caption.grammar.several or (number.isdecimal() and number != "1") for number in before
    )
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
