"""What head nouns name: kinds of objects, traits of people, and how two nouns are related; read from `nouns.txt`."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files
from typing import Final, Literal

from phrasebox.stages.files.word_lists import entries_of

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
        words: List -> its words, such as "colour"; the numbers stand under "1" to "10".
    """

    def __init__(self, text: str) -> None:
        self.paths: dict[str, list[KindPath]] = {}
        self.traits: dict[str, set[str]] = {}
        self.words: dict[str, set[str]] = {}
        for section, entry in entries_of(text):
            name, _, lemmas = entry.partition(":")
            if section == "words":
                self.words.setdefault(name, set()).update(lemmas.split())
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
def noun_lists() -> NounLists:
    """Return the lists of the package."""
    return NounLists(files(__package__).joinpath("nouns.txt").read_text(encoding="utf-8"))


@lru_cache(maxsize=65536)
def relation(first: str, second: str) -> Relation:
    """Return how two lemmas are related in the lists of the package: the closest relation of all their paths.

    >>> relation("dog", "animal"), relation("dog", "cat"), relation("dog", "hat")
    ('above', 'beside', 'apart')
    """
    if first == second:
        return "same"
    paths = noun_lists().paths
    if first not in paths or second not in paths:
        return "unknown"
    return max((_path_relation(a, b) for a in paths[first] for b in paths[second]), key=_CLOSEST.index)


def _path_relation(first: KindPath, second: KindPath) -> Relation:
    if first == second:
        return "equal"
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    if common < 2:
        return "kind" if common else "apart"
    return "above" if common == min(len(first), len(second)) else "beside"
