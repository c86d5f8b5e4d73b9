"""What head nouns name: kinds of objects, traits of people, and how two nouns are related; read from `nouns.txt`.

Other languages have lists of their own, with the same kinds and paths: so a French word and an English one are related,
too.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache, lru_cache
from typing import Final, Literal

from phrasebox.stages.files.word_lists import entries_of
from phrasebox.stages.phrases.languages import grammar_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE

Relation = Literal["same", "equal", "above", "beside", "kind", "apart", "unknown"]
"""Two lemmas are the same; two names on one path (boy, lad); one above the other (dog, animal);
beside each other (dog, cat); of one kind only (shirt, hat); of nothing in common (dog, hat); or
one is in no list."""

_CLOSEST: Final[tuple[Relation, ...]] = ("apart", "kind", "beside", "above", "equal")

KindPath = tuple[
    str, ...
]  # Kind, and from the general to the particular: ("animals", "animal", "bird", "duck")


class NounLists:
    """The content of `nouns.txt`, whose entries are "name: words".

    Attributes:
        paths: Lemma -> its paths.
        traits: Lemma -> the traits of a person that it names: "man", "woman", "child", "adult".
        words: List -> its words, such as "colour"; the numbers stand under "1" to "10". Lists that
            a language lacks are empty.
    """

    def __init__(self, text: str) -> None:
        self.paths: dict[str, list[KindPath]] = {}
        self.traits: dict[str, set[str]] = {}
        self.words: defaultdict[str, set[str]] = defaultdict(set)
        for section, entry in entries_of(text):
            name, _, lemmas = entry.partition(":")
            if section == "words":
                self.words[name].update(lemmas.casefold().split())  # as the texts of phrases
                continue
            way, *marks = name.split()
            for lemma in lemmas.split():
                self.paths.setdefault(lemma, []).append((section, *way.split("/")))
                self.traits.setdefault(lemma, set()).update(mark.removeprefix("+") for mark in marks)

    def listed_form(self, lemma: str) -> str:
        """Return the lemma as the lists have it, also without a plural's ending and the first part of a compound."""
        for form in (
            lemma,
            lemma.removesuffix("s"),
            lemma.removesuffix("es"),
            f"{lemma}s",
            lemma.rpartition("-")[2],
        ):
            if form in self.paths:
                return form
        return lemma


@cache
def noun_lists(language: str = ENGLISH_CODE) -> NounLists:
    """Return the lists of a language; empty ones where nobody has written any."""
    return NounLists(grammar_of(language).nouns)


@lru_cache(maxsize=65536)
def relation(
    first: str, second: str, language: str = ENGLISH_CODE, other_language: str | None = None
) -> Relation:
    """Return how two lemmas are related in the lists of their languages: the closest relation of all their paths.

    The second one is in the language of the first, unless another one is given.

    >>> relation("dog", "animal"), relation("dog", "cat"), relation("dog", "hat")
    ('above', 'beside', 'apart')
    >>> relation("dog", "chien", "en", "fr"), relation("chat", "chat", "en", "fr")
    ('equal', 'unknown')
    """
    is_one_language = other_language in (None, language)
    if first == second and is_one_language:
        return "same"
    paths = noun_lists(language).paths
    other_paths = noun_lists(other_language or language).paths
    if first not in paths or second not in other_paths:
        return "unknown"
    return max(
        (_path_relation(a, b) for a in paths[first] for b in other_paths[second]), key=_CLOSEST.index
    )


def _path_relation(first: KindPath, second: KindPath) -> Relation:
    if first == second:
        return "equal"
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    if common < 2:
        return "kind" if common else "apart"
    return "above" if common == min(len(first), len(second)) else "beside"
