"""Mentions of one object within one caption: "a man in a red coat ... the man".

Long captions, as vision-language models write them, name an object again and again. Rules link
these mentions, in the manner of the sieves of Raghunathan and others (EMNLP 2010):

- A definite phrase ("the man") names the last object before it with the same head noun, and modifiers and a number that
  agree; without such an object the last one whose head noun may name the same ("the animal" for a dog).
- A phrase without an article, or with a possessive pronoun, names an object of an earlier sentence with the same words.
- "Another" and "the other" name a new object; "the teacher, a tall woman" is one.

Captions of one image that somebody joined introduce objects again ("A man ... A man"). Where most heads come back with
an indefinite article, the sentences count as captions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from phrasebox.stages.phrases.languages.grammar import Words
from phrasebox.stages.phrases.wording import Wording, contradict

RELATED_KINDS: Final = {
    "equal": ("people", "animals", "vehicles", "things"),
    "above": ("people", "animals", "vehicles"),
}
"""Relation of two head nouns -> kinds of which captions name an object by both. "The water" and a river may be two."""

FEWEST_REPEATS: Final = 2  # of head nouns in a caption before it is taken for joined captions


def is_joined(wordings: Sequence[Wording]) -> bool:
    """Return whether a caption consists of several captions of one image, given its phrases in order."""
    repeats = [
        later.is_definite
        for index, later in enumerate(wordings)
        if any(_is_repeated(earlier, later) for earlier in wordings[:index])
    ]
    return len(repeats) >= FEWEST_REPEATS and 2 * sum(repeats) < len(repeats)


def _is_repeated(earlier: Wording, later: Wording) -> bool:
    is_later = earlier.sentence < later.sentence and not later.is_another
    return is_later and earlier.relation_to(later) == "same" and _may_agree([earlier], later)


def link_mentions(wordings: Sequence[Wording]) -> list[int]:
    """Return for each phrase of one caption, in order, the index of the first mention of its object."""
    objects: list[
        list[int]
    ] = []  # indices of the mentions of each object, the one mentioned last at the end
    for index, later in enumerate(wordings):
        mentions = [[wordings[place] for place in object_] for object_ in objects]
        place = _object_named(mentions, later)
        object_ = [] if place is None else objects.pop(place)
        objects.append([*object_, index])
    first = {index: object_[0] for object_ in objects for index in object_}
    return [first[index] for index in range(len(wordings))]


def _object_named(objects: Sequence[Sequence[Wording]], later: Wording) -> int | None:
    """Return the index of the object that a phrase names again, of objects in the order of their last mention."""
    if later.is_another:
        return None
    agreeing = [place for place, object_ in enumerate(objects) if _may_agree(object_, later)]
    if later.is_definite:
        for name in ("same", "equal", "above"):
            related = [place for place in agreeing if _relation(objects[place], later) == name]
            if related and later.kind in RELATED_KINDS.get(name, (later.kind,)):
                return max(
                    related, key=lambda place: (len(_modifiers_of(objects[place]) & later.modifiers), place)
                )
        return None
    if agreeing and _is_apposition(objects[-1][-1], later):
        return agreeing[-1]
    if later.is_indefinite or later.count:
        return None
    return next((place for place in reversed(agreeing) if _has_words(objects[place], later)), None)


def _is_apposition(before: Wording, later: Wording) -> bool:
    """Return whether a phrase explains the one before it: "the teacher, a tall woman"."""
    is_beside = before.order + 1 == later.order and later.before.endswith(",") and before.is_definite
    return is_beside and later.has_article and before.relation_to(later) in ("equal", "above")


def _relation(object_: Sequence[Wording], later: Wording) -> str:
    relations = {mention.relation_to(later) for mention in object_}
    return next((name for name in ("same", "equal", "above") if name in relations), "apart")


def _modifiers_of(object_: Sequence[Wording]) -> Words:
    return frozenset().union(*(mention.modifiers for mention in object_))


def _has_words(object_: Sequence[Wording], later: Wording) -> bool:
    return any(mention.words == later.words and mention.sentence < later.sentence for mention in object_)


def _may_agree(object_: Sequence[Wording], later: Wording) -> bool:
    """Return whether number, sex, colours and modifiers of a phrase do not speak against an object."""
    if any(contradict(mention, later) for mention in object_) or object_[0].is_plural != later.is_plural:
        return False
    colours = frozenset().union(*(mention.colours for mention in object_))
    if colours and later.colours and not colours & later.colours:
        return False
    modifiers = _modifiers_of(object_)
    return not (modifiers and later.modifiers and not modifiers & later.modifiers)
