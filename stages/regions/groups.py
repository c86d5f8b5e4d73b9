"""Links the phrases of an image that name one thing: "a boy", "young child" and "kid in a blue top" in three captions.

stages/README.md says how. Average linkage with constraints is that of Davidson & Ravi (PKDD 2005).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final, Literal

import numpy as np

from stages.contract.records import Phrase

LINK_FROM: Final = -0.75
"""Mean log odds from which two groups are joined: a probability of 0.32. The best F1 of pairs lies below even odds; it
is flat from -1 to -0.5 (measured on images that the weights were not fitted to)."""

MOST_LINKED: Final = 256
"""Most phrases of an image that are linked; all later ones are things of their own. The time grows with the square of
their number: 0.7 ms for the 15 phrases of five captions, half a second for 256."""

_NEVER: Final = -math.inf

_SPELT_AS: Final = {"grey": "gray", "blonde": "blond", "beige": "tan"}

_LIVING: Final = frozenset({"people", "animals"})
_SEXES: Final = frozenset({"man", "woman"})
_AGES: Final = frozenset({"child", "adult"})


Relation = Literal["same", "equal", "above", "beside", "kind", "apart", "unknown"]
"""Two lemmas are the same; two names on one path (boy, lad); one above the other (dog, animal); beside each other (dog,
cat); of one kind only (shirt, hat); of nothing in common (dog, hat); or one is in no list."""

_CLOSEST: Final[tuple[Relation, ...]] = ("apart", "kind", "beside", "above", "equal")

KindPath = tuple[str, ...]  # Kind, and from the general to the particular: ("animals", "animal", "bird", "duck")


@dataclass(frozen=True, slots=True)
class Things:
    """The content of `things.txt`."""

    paths: Mapping[str, tuple[KindPath, ...]]  # Lemma -> its paths
    traits: Mapping[str, frozenset[str]]  # Lemma -> traits of a person that it names: "man", "woman", "child", "adult"
    words: Mapping[str, frozenset[str]]  # List -> its words, such as "colour"; the numbers stand under "1" to "10"

    def known(self, lemma: str) -> str:
        """Return the lemma as the lists have it, also without a plural's ending and the first part of a compound."""
        for form in (lemma, lemma.removesuffix("s"), lemma.removesuffix("es"), f"{lemma}s", lemma.rpartition("-")[2]):
            if form in self.paths:
                return form
        return lemma


@cache
def things() -> Things:
    """Return the lists of the package."""
    return parse_things(files(__package__).joinpath("things.txt").read_text(encoding="utf-8"))


def parse_things(text: str) -> Things:
    """Read the lists. Raise ValueError, with the line, for a line that is neither a section nor "name: words"."""
    paths: dict[str, dict[KindPath, None]] = {}
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


def _related(one: KindPath, other: KindPath) -> Relation:
    if one == other:
        return "equal"
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    if common < 2:
        return "kind" if common else "apart"
    return "above" if common == min(len(one), len(other)) else "beside"


@dataclass(frozen=True, slots=True)
class Wording:
    """The words of a phrase and their place in its caption."""

    caption: int  # Index of its caption
    lemma: str  # The head noun's, as `things.txt` has it
    kind: str  # The section of `things.txt`, or "other"
    words: frozenset[str]
    modifiers: frozenset[str]  # The words but the head, numbers and words without a meaning of their own
    colours: frozenset[str]  # Those among the modifiers
    traits: frozenset[str]  # The traits that it gives to a person
    count: int | None  # The number of things that it names; None if it does not say one
    several: bool  # Whether it names several
    other: bool  # Whether it says that it is another one than one before
    before: str  # The word before the phrase
    order: int = 0  # Its number among the phrases of its caption, from 0
    place: float = 0.0  # The same as a share of these phrases, 0 .. 1
    order_in_kind: int = 0  # Its number among the phrases of its kind in its caption, from 0
    of_kind: int = 1  # The number of these phrases


def linked(captions: Sequence[str], phrases: Sequence[Phrase]) -> tuple[int, ...]:
    """Return the number of the thing that each phrase of an image's captions names, from 0 in the order of the phrases.

    A phrase within another one of the same head ("a dog" in "a dog in a field") names its thing.
    """
    owners = _inner(phrases)
    inner = sorted(set(owners))
    thing_of = {index: index for index in inner}
    near = inner[:MOST_LINKED]
    if len({phrases[index].caption_index for index in near}) > 1:
        found = wordings(captions, [phrases[index] for index in near])
        thing_of.update(zip(near, (near[number] for number in _joined(found)), strict=True))
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(thing_of[owner], len(numbers)) for owner in owners)


def _inner(phrases: Sequence[Phrase]) -> list[int]:
    """Return for each phrase the shortest one of the same head and caption inside it: mostly itself."""
    in_caption: dict[tuple[int, str], list[int]] = {}
    for index, phrase in enumerate(phrases):
        in_caption.setdefault((phrase.caption_index, phrase.head), []).append(index)
    return [
        min(
            (
                other
                for other in in_caption[phrase.caption_index, phrase.head]
                if phrase.start <= phrases[other].start and phrases[other].end <= phrase.end
            ),
            key=lambda other: (phrases[other].end - phrases[other].start, other),
        )
        for phrase in phrases
    ]


def wordings(captions: Sequence[str], phrases: Sequence[Phrase]) -> list[Wording]:
    """Return the wording of each phrase, in the order of the phrases."""
    kinds = [_lemma_and_kind(phrase) for phrase in phrases]
    order = sorted(range(len(phrases)), key=lambda index: (phrases[index].caption_index, phrases[index].start))
    in_caption = Counter(phrase.caption_index for phrase in phrases)
    of_kind = Counter((phrase.caption_index, kind) for phrase, (_, kind) in zip(phrases, kinds, strict=True))
    seen: Counter[object] = Counter()
    found: dict[int, Wording] = {}
    for index in order:
        phrase, (lemma, kind) = phrases[index], kinds[index]
        caption = phrase.caption_index
        found[index] = replace(
            _wording(captions[caption], phrase, lemma, kind),
            order=seen[caption],
            place=seen[caption] / max(1, in_caption[caption] - 1),
            order_in_kind=seen[caption, kind],
            of_kind=of_kind[caption, kind],
        )
        seen.update([caption, (caption, kind)])
    return [found[index] for index in range(len(phrases))]


def _lemma_and_kind(phrase: Phrase) -> tuple[str, str]:
    lists = things()
    lemma = lists.known(phrase.head)
    kinds = sorted({path[0] for path in lists.paths.get(lemma, ())})
    return lemma, "people" if "people" in kinds else next(iter(kinds), "other")


@cache
def _numbers() -> Mapping[str, int]:
    """Word -> the number that it means."""
    return {word: number for number in range(1, 11) for word in things().words[str(number)]}


def _wording(caption: str, phrase: Phrase, lemma: str, kind: str) -> Wording:
    lists = things().words
    words = phrase.text.split()
    parts = {part for word in words for part in word.split("-")}
    numbers = _numbers()
    counts = [numbers[word] for word in words if word in numbers]
    several = phrase.plural or any(count > 1 for count in counts) or not lists["several"].isdisjoint(words)
    # Captions leave articles out: "shirt" may stand for shirts, while "man" is one man.
    count = counts[0] if counts else 1 if kind in (*_LIVING, "vehicles") and not several else None
    traits = set(things().traits.get(lemma, ()))
    if kind == "people":
        marks = {"young": "child", "old": "adult", "male": "man", "female": "woman"}
        traits.update(trait for name, trait in marks.items() if not lists[name].isdisjoint(words))
    said = caption[phrase.start : phrase.end].casefold().split()
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
            and things().known(word) != lemma
        ),
        colours=frozenset(_SPELT_AS.get(part, part) for part in parts & lists["colour"]),
        traits=frozenset(traits),
        count=count,
        several=several,
        other=not lists["other"].isdisjoint(said),
        before=next(iter(caption[: phrase.start].casefold().split()[-1:]), ""),
    )


def contradict(one: Wording, other: Wording) -> bool:
    """Return whether two phrases cannot name the same thing.

    They cannot if they count otherwise ("two men", "a man", "people"), if one is a man's and one a woman's, if they are
    two kinds of animals or of vehicles (a cat, a dog), or if clothes have no colour in common. Other things may: what
    one caption calls brown another calls red. These rules cost 0.003 of F1, because people who describe an image err,
    and keep out links that nobody would understand.
    """
    if one.count and other.count and one.count != other.count:
        return True
    if (one.count == 1 and other.several) or (other.count == 1 and one.several):
        return True
    if one.kind != other.kind:
        return False
    if one.kind in ("animals", "vehicles"):
        return relation(one.lemma, other.lemma) == "beside"
    if one.kind == "clothing":
        return bool(one.colours and other.colours and not one.colours & other.colours)
    sexes = one.traits & _SEXES, other.traits & _SEXES
    return bool(one.kind == "people" and all(sexes) and not sexes[0] & sexes[1])


def pair_features(one: Wording, other: Wording) -> dict[str, float]:
    """Return the features of two phrases of different captions, which may name the same thing; those left out are 0."""
    related = relation(one.lemma, other.lemma)
    kind = one.kind if one.kind == other.kind else "mixed"
    shared = one.modifiers & other.modifiers
    found = {
        "bias": 1.0,
        related: 1.0,
        "words": len(one.words & other.words) / len(one.words | other.words),
        "modifiers": float(min(2, len(shared))),
        "distance": abs(one.place - other.place),
    }

    def say(name: str, condition: object) -> None:
        if condition:
            found[name] = 1.0

    say("modifiers_differ", not shared and one.modifiers and other.modifiers)
    say("head_inside", related != "same" and (one.lemma in other.words or other.lemma in one.words))
    living = kind if kind in _LIVING else "things"
    if one.count and other.count:
        say("counts_equal", one.count == other.count > 1)
        say(f"one_{living}", one.count == other.count == 1)
    say("number_differs", one.several != other.several)
    say("both_several", one.several and other.several)
    if kind == "people":
        ages = one.traits & _AGES, other.traits & _AGES
        say("sex_agrees", one.traits & other.traits & _SEXES)
        say("age_agrees", ages[0] & ages[1])
        say("age_differs", all(ages) and not ages[0] & ages[1])
        say("child_or_not", ("child" in one.traits) != ("child" in other.traits))
    if one.colours and other.colours:
        say("colours_equal", one.colours == other.colours)
        say("colours_overlap", one.colours & other.colours)
        say(f"colours_differ_{living}", not one.colours & other.colours)
    if kind not in ("mixed", "other"):
        say(f"only_{living}", one.of_kind == other.of_kind == 1)
        several_each = one.of_kind > 1 or other.of_kind > 1
        say(f"same_order_{living}", several_each and one.order_in_kind == other.order_in_kind)
    say("first", one.order == other.order == 0)
    say("one_first", (one.order == 0) != (other.order == 0))
    say("same_before", one.before == other.before and one.before)
    say("one_other", one.other != other.other)
    say("both_other", one.other and other.other)
    return found


@cache
def _weights() -> Mapping[str, float]:
    content = json.loads(files(__package__).joinpath("groups.json").read_text(encoding="utf-8"))
    weights: dict[str, float] = content["weights"]
    return weights


def log_odds(one: Wording, other: Wording) -> float:
    """Return the log odds that two phrases of different captions name the same thing."""
    weights = _weights()
    return math.fsum(weights.get(name, 0.0) * value for name, value in pair_features(one, other).items())


def _joined(found: Sequence[Wording]) -> list[int]:
    """A number for each wording, equal for those that name the same thing."""
    count = len(found)
    between = np.full((count, count), _NEVER)
    for i, one in enumerate(found):
        for j in range(i):
            if one.caption != found[j].caption and not contradict(one, found[j]):
                between[i, j] = between[j, i] = log_odds(found[j], one)
    group = list(range(count))
    sizes = np.ones(count)
    while count:
        i, j = divmod(int(between.argmax()), count)
        if between[i, j] < LINK_FROM:
            break
        i, j = min(i, j), max(i, j)
        mean = (between[i] * sizes[i] + between[j] * sizes[j]) / (sizes[i] + sizes[j])
        between[i], between[:, i] = mean, mean
        between[j] = between[:, j] = between[i, i] = _NEVER
        sizes[i] += sizes[j]
        group = [i if number == j else number for number in group]
    return group
