"""Mentions of one thing within one caption: "a man in a red coat ... the man".

Long captions, as vision-language models write them, name a thing again and again. Rules link
these mentions, in the manner of the sieves of Raghunathan and others (EMNLP 2010):

- A definite phrase ("the man") names the last thing before it with the same head noun, and modifiers and a number that
  agree; without such a thing the last one whose head noun may name the same ("the animal" for a dog).
- A phrase without an article, or with a possessive pronoun, names a thing of an earlier sentence with the same words.
- "Another" and "the other" name a new thing; "the teacher, a tall woman" is one.

Captions of one image that somebody joined introduce things again ("A man ... A man"). Where most heads come back with
an indefinite article, the sentences count as captions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from phrasebox.stages.phrases.nouns import relation
from phrasebox.stages.phrases.wording import Wording, Words, contradict

DEFINITE: Final = frozenset({"the", "this", "that", "these", "those", "both"})
INDEFINITE: Final = frozenset({"a", "an", "another", "some", "several", "many", "few"})

RELATED_KINDS: Final = {
    "equal": ("people", "animals", "vehicles", "things"),
    "above": ("people", "animals", "vehicles"),
}
"""Relation of two head nouns -> kinds of which a caption names a thing by both. "The water" and a river may be two."""

FEWEST_REPEATS: Final = 2  # of head nouns in a caption before it is taken for joined captions


def is_joined(wordings: Sequence[Wording]) -> bool:
    """Return whether a caption consists of several captions of one image, given its phrases in order."""
    repeats = [
        later.opening in DEFINITE
        for index, later in enumerate(wordings)
        if any(_is_repeated(earlier, later) for earlier in wordings[:index])
    ]
    return len(repeats) >= FEWEST_REPEATS and 2 * sum(repeats) < len(repeats)


def _is_repeated(earlier: Wording, later: Wording) -> bool:
    is_later = earlier.sentence < later.sentence and not later.is_another
    return is_later and earlier.lemma == later.lemma and _may_agree([earlier], later)


def link_mentions(wordings: Sequence[Wording]) -> list[int]:
    """Return for each phrase of one caption, in order, the index of the first mention of its thing."""
    things: list[list[int]] = []  # indices of the mentions of each thing, the one mentioned last at the end
    for index, later in enumerate(wordings):
        mentions = [[wordings[place] for place in thing] for thing in things]
        place = _thing_named(mentions, later)
        thing = [] if place is None else things.pop(place)
        things.append([*thing, index])
    first = {index: thing[0] for thing in things for index in thing}
    return [first[index] for index in range(len(wordings))]


def _thing_named(things: Sequence[Sequence[Wording]], later: Wording) -> int | None:
    """Return the index of the thing that a phrase names again, of things in the order of their last mention."""
    if later.is_another:
        return None
    agreeing = [place for place, thing in enumerate(things) if _may_agree(thing, later)]
    if later.opening in DEFINITE:
        for name in ("same", "equal", "above"):
            related = [place for place in agreeing if _relation(things[place], later) == name]
            if related and later.kind in RELATED_KINDS.get(name, (later.kind,)):
                return max(
                    related, key=lambda place: (len(_modifiers_of(things[place]) & later.modifiers), place)
                )
        return None
    if agreeing and _is_apposition(things[-1][-1], later):
        return agreeing[-1]
    if later.opening in INDEFINITE or later.count:
        return None
    return next((place for place in reversed(agreeing) if _has_words(things[place], later)), None)


def _is_apposition(before: Wording, later: Wording) -> bool:
    """Return whether a phrase explains the one before it: "the teacher, a tall woman"."""
    is_beside = (
        before.order + 1 == later.order and later.before.endswith(",") and before.opening in DEFINITE
    )
    return (
        is_beside
        and later.opening in ("a", "an")
        and relation(before.lemma, later.lemma) in ("equal", "above")
    )


def _relation(thing: Sequence[Wording], later: Wording) -> str:
    relations = {relation(mention.lemma, later.lemma) for mention in thing}
    return next((name for name in ("same", "equal", "above") if name in relations), "apart")


def _modifiers_of(thing: Sequence[Wording]) -> Words:
    return frozenset().union(*(mention.modifiers for mention in thing))


def _has_words(thing: Sequence[Wording], later: Wording) -> bool:
    return any(mention.words == later.words and mention.sentence < later.sentence for mention in thing)


def _may_agree(thing: Sequence[Wording], later: Wording) -> bool:
    """Return whether number, sex, colours and modifiers of a phrase do not speak against a thing."""
    if any(contradict(mention, later) for mention in thing) or thing[0].is_plural != later.is_plural:
        return False
    colours = frozenset().union(*(mention.colours for mention in thing))
    if colours and later.colours and not colours & later.colours:
        return False
    modifiers = _modifiers_of(thing)
    return not (modifiers and later.modifiers and not modifiers & later.modifiers)
