"""The base noun phrases of an English caption, by the parts of speech of its words: "two black and white dogs".

A base phrase is determiners, modifiers and nouns, and ends at its last noun. `repairs.py` corrects what parts of
speech alone get wrong. A dependency parser finds no better ones and costs a third of the parsing: with the repairs, F1
on exact spans of 5,000 Flickr30k Entities captions is 94.6 with either (dev, where these rules were written).
"""

from __future__ import annotations

from typing import Final

from phrasebox.stages.phrases.caption import NOUN_TAGS, Candidate, Candidates, ParsedCaption

_PRONOUN_TAGS: Final = frozenset({"PRP", "WP"})
_DETERMINER_TAGS: Final = frozenset({"DT", "PRP$", "PDT", "WDT"})
_ADJECTIVE_TAGS: Final = frozenset({"JJ", "JJR", "JJS", "VBN", "CD"})
_MODIFIER_TAGS: Final = _ADJECTIVE_TAGS | {"VBG", "POS", "HYPH", "RB", "RBR", "RBS"}
_INSIDE_TAGS: Final = NOUN_TAGS | _MODIFIER_TAGS
_BEHIND_DETERMINER_TAGS: Final = frozenset(
    {"VBD", "FW"}
)  # "a broken window", where the tagger takes a finite verb
_BETWEEN_ADJECTIVES: Final = frozenset({"CC", ","})
_NO_START_TAGS: Final = frozenset({"RB", "RBR", "POS", "HYPH"})
_CLAUSE_WORDS: Final = frozenset({"while", "whilst", "as", "after", "before", "when", "by"})
"""Words with the tag of a preposition that begin a clause: "while | holding two ropes"."""


def find_base_phrases(caption: ParsedCaption) -> Candidates:
    """Return the base noun phrases and pronouns of a caption in order, without overlap."""
    phrases: Candidates = []
    index = 0
    while index < len(caption.tags):
        phrase = _phrase_at(caption, index)
        if phrase is None:
            index += 1
        else:
            phrases.append(phrase)
            index = phrase.end
    return phrases


def _phrase_at(caption: ParsedCaption, start: int) -> Candidate | None:
    """Return the phrase that begins at a token, or behind verbs there; None if none does."""
    tags = caption.tags
    if tags[start] in _PRONOUN_TAGS:
        return Candidate(start, start + 1, start)
    first = start
    while first < len(tags) and tags[first] in _DETERMINER_TAGS:
        first += 1
    end = first
    noun = None
    while end < len(tags) and _continues(caption, end, start, has_noun=noun is not None):
        if tags[end] in NOUN_TAGS:
            noun = end
        end += 1
    if noun is not None:
        return Candidate(start if first > start else _skip_verbs(caption, start, noun), noun + 1, noun)
    return Candidate(start, end, end - 1) if start < first < end else None  # "the young"


def _continues(caption: ParsedCaption, index: int, start: int, *, has_noun: bool) -> bool:
    """Return whether a token belongs to the phrase from `start` on, which it would follow."""
    tags = caption.tags
    tag = tags[index]
    before = tags[index - 1] if index > start else ""
    if tag == "VBG" and before:
        if caption.words[index] in caption.grammar.wearing:
            return False  # "a skateboard | wearing a hat"
        if before in NOUN_TAGS and tags[index + 1 : index + 2] != [] and tags[index + 1] not in NOUN_TAGS:
            return False  # "a dog | running fast", but "an ice skating rink"
    if tag in _INSIDE_TAGS:
        return True
    if tag in _BEHIND_DETERMINER_TAGS:
        return tags[start] in _DETERMINER_TAGS
    if tag == "RP":
        return before == "VBN"  # "a chalked out grid"
    return not has_noun and _joins_adjectives(tags, index, start)


def _joins_adjectives(tags: list[str], index: int, start: int) -> bool:
    """Return whether a comma or conjunction stands between words that describe one noun: "black , brown and tan"."""
    before = index
    while before > start and tags[before] in _BETWEEN_ADJECTIVES:
        before -= 1
    after = index
    while after < len(tags) and tags[after] in _BETWEEN_ADJECTIVES:
        after += 1
    if not before < index < after < len(tags) or after - before > 3 or tags[before] not in _ADJECTIVE_TAGS:
        return False
    return tags[after] in _ADJECTIVE_TAGS | {"VBG", "VBD"} or (
        tags[before] == "JJ" and tags[after] in NOUN_TAGS
    )


def _skip_verbs(caption: ParsedCaption, start: int, noun: int) -> int:
    """Return where a phrase without a determiner begins: behind participles, unless a preposition stands before them.

    "While | holding | two ropes", but "in matching shirts".
    """
    tags = caption.tags
    is_behind_preposition = (
        start > 0 and tags[start - 1] == "IN" and caption.words[start - 1] not in _CLAUSE_WORDS
    )
    if tags[start] == "RB" and tags[start + 1] in _ADJECTIVE_TAGS and (start == 0 or is_behind_preposition):
        return start  # "slightly overweight women"
    skipped = _NO_START_TAGS if is_behind_preposition else _NO_START_TAGS | {"VBG", "VBN"}
    while start < noun and tags[start] in skipped:
        start += 1
    return start
