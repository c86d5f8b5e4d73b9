"""Lists of words that name things: `things.txt`, which explains itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final, Literal

Relation = Literal["same", "equal", "above", "beside", "kind", "apart", "unknown"]
"""Two lemmas are the same; two names on one path (boy, lad); one above the other (dog, animal); beside each other (dog,
cat); of one kind only (shirt, hat); of nothing in common (dog, hat); or one is in no list."""

_CLOSEST: Final[tuple[Relation, ...]] = ("apart", "kind", "beside", "above", "equal")

Path = tuple[str, ...]
"""Kind, and from the general to the particular: ("animals", "animal", "bird", "duck")."""


@dataclass(frozen=True, slots=True)
class Things:
    """The content of `things.txt`.

    Attributes:
        paths: Lemma -> its paths.
        traits: Lemma -> traits of a person that it names: "man", "woman", "child", "adult".
        words: List -> its words, such as "colour"; the numbers stand under "1" to "10".
    """

    paths: Mapping[str, tuple[Path, ...]]
    traits: Mapping[str, frozenset[str]]
    words: Mapping[str, frozenset[str]]

    def known(self, lemma: str) -> str:
        """The lemma as the lists have it, also without a plural's ending and the first part of a compound."""
        for form in (lemma, lemma.removesuffix("s"), lemma.removesuffix("es"), f"{lemma}s", lemma.rpartition("-")[2]):
            if form in self.paths:
                return form
        return lemma


@cache
def things() -> Things:
    """The lists of the package."""
    return parse_things(files(__package__).joinpath("things.txt").read_text(encoding="utf-8"))


def parse_things(text: str) -> Things:
    """Read the lists. Raises ValueError, with the line, for a line that is neither a section nor "name: words"."""
    paths: dict[str, dict[Path, None]] = {}
    traits: dict[str, set[str]] = {}
    words: dict[str, set[str]] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if entry.startswith("[") and entry.endswith("]"):
            section = entry[1:-1]
        elif entry:
            name, colon, lemmas = entry.partition(":")
            if not (colon and section and name.strip() and lemmas.strip()):
                raise ValueError(f"line {number}: expected [section] or name: words, got {entry!r}")
            if section == "words":
                words.setdefault(name, set()).update(lemmas.split())
                continue
            way, *marks = name.split()
            for lemma in lemmas.split():
                paths.setdefault(lemma, {})[(section, *way.split("/"))] = None
                traits.setdefault(lemma, set()).update(mark.removeprefix("+") for mark in marks)
    return Things(
        paths={lemma: tuple(found) for lemma, found in paths.items()},
        traits={lemma: frozenset(found) for lemma, found in traits.items()},
        words={name: frozenset(found) for name, found in words.items()},
    )


@lru_cache(maxsize=65536)
def relation(first: str, second: str) -> Relation:
    """Return how two lemmas are related in the lists of the package: the closest relation of all their paths."""
    if first == second:
        return "same"
    paths = things().paths
    if first not in paths or second not in paths:
        return "unknown"
    return max((_related(one, other) for one in paths[first] for other in paths[second]), key=_CLOSEST.index)


def _related(one: Path, other: Path) -> Relation:
    if one == other:
        return "equal"
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    if common < 2:
        return "kind" if common else "apart"
    return "above" if common == min(len(one), len(other)) else "beside"
