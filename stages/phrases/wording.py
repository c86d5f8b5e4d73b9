"""The wording of a phrase: what its words, its determiner and its place say of the object that it names."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.phrases.languages import grammar_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE, Words
from phrasebox.stages.phrases.nouns import Relation, noun_lists, relation

_SPELT_AS: Final = {"grey": "gray", "blonde": "blond", "beige": "tan"}
LIVING: Final = frozenset({"people", "animals"})
SEXES: Final = frozenset({"man", "woman"})

_SENTENCE_END: Final = re.compile(r"[.!?]['\")\]]*\s+|\n\s*")


@dataclass(frozen=True, slots=True)
class Wording:
    """The words of a phrase and their place in its caption.

    Attributes:
        caption: Index of its caption.
        lemma: The head noun's, as `nouns.txt` has it.
        kind: The section of `nouns.txt`, or "other".
        words: All words of its text.
        modifiers: The words but the head, numbers and words without a meaning of their own.
        colours: The colours among the modifiers.
        traits: The traits that it gives to a person.
        count: The number of objects that it names; None if it names no number.
        is_plural: Whether it names several objects.
        is_another: Whether its object is another one than one before ("another", "the other").
        before: The word before the phrase.
        opening: The first word of the phrase with its determiner.
        sentence: The number of its sentence in the caption.
        order: Its number among the phrases of its caption, from 0.
        place: The same as a share of these phrases, 0 .. 1.
        order_in_kind: Its number among the phrases of its kind in its caption, from 0.
        of_kind: The number of these phrases.
        language: The code of its language.
    """

    caption: int
    lemma: str
    kind: str
    words: Words
    modifiers: Words
    colours: Words
    traits: Words
    count: int | None
    is_plural: bool
    is_another: bool
    before: str
    opening: str
    sentence: int
    order: int = 0
    place: float = 0.0
    order_in_kind: int = 0
    of_kind: int = 1
    language: str = ENGLISH_CODE

    @property
    def is_definite(self) -> bool:
        """Whether it begins with a word such as "the"."""
        grammar = grammar_of(self.language)
        return self.opening in grammar.definite or self.opening.startswith(grammar.elisions)  # "l'homme"

    @property
    def is_indefinite(self) -> bool:
        """Whether it begins with a word such as "a" or "some"."""
        return self.opening in grammar_of(self.language).indefinite

    @property
    def has_article(self) -> bool:
        """Whether it begins with an indefinite article."""
        return self.opening in grammar_of(self.language).appositive

    def relation_to(self, other: Wording) -> Relation:
        """Return how the head nouns of two phrases are related."""
        return relation(self.lemma, other.lemma, self.language, other.language)


def wordings(captions: Sequence[str], phrases: Sequence[Phrase]) -> list[Wording]:
    """Return the wording of each phrase, in the order of the phrases."""
    kinds = [_lemma_and_kind(phrase) for phrase in phrases]
    by_index: dict[int, Wording] = {}
    for caption in {phrase.caption_index for phrase in phrases}:
        indices = [index for index, phrase in enumerate(phrases) if phrase.caption_index == caption]
        indices.sort(key=lambda index: phrases[index].start)
        kinds_here = [kinds[index][1] for index in indices]
        for order, (index, kind) in enumerate(zip(indices, kinds_here, strict=True)):
            by_index[index] = replace(
                _wording(captions[caption], phrases[index], *kinds[index]),
                order=order,
                place=order / max(1, len(indices) - 1),
                order_in_kind=kinds_here[:order].count(kind),
                of_kind=kinds_here.count(kind),
            )
    return [by_index[index] for index in range(len(phrases))]


def _lemma_and_kind(phrase: Phrase) -> tuple[str, str]:
    lists = noun_lists(phrase.language)
    lemma = lists.listed_form(phrase.head)
    kinds = sorted({path[0] for path in lists.paths.get(lemma, ())})
    return lemma, "people" if "people" in kinds else next(iter(kinds), "other")


@cache
def _numbers(language: str) -> Mapping[str, int]:
    """Return word -> the number that it means."""
    return {word: number for number in range(1, 11) for word in noun_lists(language).words[str(number)]}


def _wording(caption: str, phrase: Phrase, lemma: str, kind: str) -> Wording:
    listed = noun_lists(phrase.language)
    lists = listed.words
    words = phrase.text.split()
    parts = {part for word in words for part in word.split("-")}
    numbers = _numbers(phrase.language)
    counts = [numbers[word] for word in words if word in numbers]
    is_plural = (
        phrase.plural or any(count > 1 for count in counts) or not lists["several"].isdisjoint(words)
    )
    # Captions leave articles out: "shirt" may stand for shirts, while "man" is one man.
    count = counts[0] if counts else 1 if kind in (*LIVING, "vehicles") and not is_plural else None
    traits = set(listed.traits.get(lemma, ()))
    if kind == "people":
        marks = {"young": "child", "old": "adult", "male": "man", "female": "woman"}
        traits.update(trait for name, trait in marks.items() if not lists[name].isdisjoint(words))
    caption_words = caption[phrase.start : phrase.end].casefold().split()
    return Wording(
        caption=phrase.caption_index,
        lemma=lemma,
        kind=kind,
        words=frozenset(words),
        modifiers=frozenset(
            word
            for word in words
            if word not in numbers
            and word not in lists["no modifier"]
            and word != phrase.head
            and listed.listed_form(word) != lemma
        ),
        colours=frozenset(_SPELT_AS.get(part, part) for part in parts & lists["colour"]),
        traits=frozenset(traits),
        count=count,
        is_plural=is_plural,
        is_another=not lists["other"].isdisjoint(caption_words),
        before=next(iter(caption[: phrase.start].casefold().split()[-1:]), ""),
        opening=next(iter(caption_words), ""),
        sentence=bisect_right(sentence_ends(caption), phrase.start),
        language=phrase.language,
    )


def contradict(first: Wording, second: Wording) -> bool:
    """Return whether two phrases cannot name the same object.

    They cannot if their numbers ("two men", "a man", "people") or the sexes of people differ.
    Two kinds of animals or of vehicles (a cat, a dog) cannot, either. Nor can clothes without a
    common colour; colours of other objects may differ: the brown of one caption is the red of
    another. These rules cost 0.003 of F1, because captions err, and prevent links that nobody
    would understand.
    """
    if first.count and second.count and first.count != second.count:
        return True
    if (first.count == 1 and second.is_plural) or (second.count == 1 and first.is_plural):
        return True
    if first.kind != second.kind:
        return False
    if first.kind in ("animals", "vehicles"):
        return first.relation_to(second) == "beside"
    if first.kind == "clothing":
        return bool(first.colours and second.colours and not first.colours & second.colours)
    sexes = first.traits & SEXES, second.traits & SEXES
    return bool(first.kind == "people" and all(sexes) and not sexes[0] & sexes[1])


def sentence_ends(caption: str) -> list[int]:
    """Return the offsets at which the sentences of a caption end, but for the last one.

    >>> sentence_ends("A dog. It runs.")
    [7]
    """
    return [match.end() for match in _SENTENCE_END.finditer(caption) if match.end() < len(caption)]
