"""Links the phrases of an image that name one thing: "a boy", "young child" and "kid in a blue top" in three captions.

stages/README.md says how. Average linkage with constraints is that of Davidson & Ravi (PKDD 2005).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final, Literal

import numpy as np

from stages.contract.records import Phrase

LINK_FROM: Final = -0.75
"""Least mean log odds of two groups to join them: a probability of 0.32. The best F1 of pairs
lies below even odds; it is flat from -1 to -0.5 (measured on images that the weights were not
fitted to)."""

MOST_LINKED: Final = 256
"""Most phrases of an image that are linked; all later ones are things of their own. The time
grows with the square of their number: 0.7 ms for the 15 phrases of five captions, half a second
for 256."""

_NEVER: Final = -math.inf

_SPELT_AS: Final = {"grey": "gray", "blonde": "blond", "beige": "tan"}

_LIVING: Final = frozenset({"people", "animals"})
_SEXES: Final = frozenset({"man", "woman"})
_AGES: Final = frozenset({"child", "adult"})


Relation = Literal["same", "equal", "above", "beside", "kind", "apart", "unknown"]
"""Two lemmas are the same; two names on one path (boy, lad); one above the other (dog, animal);
beside each other (dog, cat); of one kind only (shirt, hat); of nothing in common (dog, hat); or
one is in no list."""

_CLOSEST: Final[tuple[Relation, ...]] = ("apart", "kind", "beside", "above", "equal")

KindPath = tuple[str, ...]  # Kind, and from the general to the particular: ("animals", "animal", "bird", "duck")


@dataclass(frozen=True, slots=True)
class Things:
    """The content of `things.txt`.

    Attributes:
        paths: Lemma -> its paths.
        traits: Lemma -> the traits of a person that it names: "man", "woman", "child", "adult".
        words: List -> its words, such as "colour"; the numbers stand under "1" to "10".
    """

    paths: Mapping[str, tuple[KindPath, ...]]
    traits: Mapping[str, frozenset[str]]
    words: Mapping[str, frozenset[str]]

    def listed_form(self, lemma: str) -> str:
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
    """Read the lists: lines are [section] or "name: words", and # begins a comment."""
    paths: dict[str, dict[KindPath, None]] = {}
    traits: dict[str, set[str]] = {}
    words: dict[str, set[str]] = {}
    section = ""
    for line in text.splitlines():
        entry = line.partition("#")[0].strip()
        if entry.startswith("[") and entry.endswith("]"):
            section = entry[1:-1]
        elif entry:
            name, _, lemmas = entry.partition(":")
            if section == "words":
                words.setdefault(name, set()).update(lemmas.split())
                continue
            way, *marks = name.split()
            for lemma in lemmas.split():
                paths.setdefault(lemma, {})[(section, *way.split("/"))] = None
                traits.setdefault(lemma, set()).update(mark.removeprefix("+") for mark in marks)
    return Things(
        paths={lemma: tuple(entries) for lemma, entries in paths.items()},
        traits={lemma: frozenset(entries) for lemma, entries in traits.items()},
        words={name: frozenset(entries) for name, entries in words.items()},
    )


@lru_cache(maxsize=65536)
def relation(first: str, second: str) -> Relation:
    """Return how two lemmas are related in the lists of the package: the closest relation of all their paths.

    >>> relation("dog", "animal"), relation("dog", "cat"), relation("dog", "hat")
    ('above', 'beside', 'apart')
    """
    if first == second:
        return "same"
    paths = things().paths
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


@dataclass(frozen=True, slots=True)
class Wording:
    """The words of a phrase and their place in its caption.

    Attributes:
        caption: Index of its caption.
        lemma: The head noun's, as `things.txt` has it.
        kind: The section of `things.txt`, or "other".
        words: All words of its text.
        modifiers: The words but the head, numbers and words without a meaning of their own.
        colours: The colours among the modifiers.
        traits: The traits that it gives to a person.
        count: The number of things that it names; None if it names no number.
        is_plural: Whether it names several things.
        is_another: Whether its thing is another one than one before ("another", "the other").
        before: The word before the phrase.
        order: Its number among the phrases of its caption, from 0.
        place: The same as a share of these phrases, 0 .. 1.
        order_in_kind: Its number among the phrases of its kind in its caption, from 0.
        of_kind: The number of these phrases.
    """

    caption: int
    lemma: str
    kind: str
    words: frozenset[str]
    modifiers: frozenset[str]
    colours: frozenset[str]
    traits: frozenset[str]
    count: int | None
    is_plural: bool
    is_another: bool
    before: str
    order: int = 0
    place: float = 0.0
    order_in_kind: int = 0
    of_kind: int = 1


def link_phrases(captions: Sequence[str], phrases: Sequence[Phrase]) -> tuple[int, ...]:
    """Return the number of the thing that each phrase of an image's captions names, from 0 in the order of the phrases.

    A phrase within another one of the same head ("a dog" in "a dog in a field") names its thing.
    """
    cores = _cores(phrases)
    unique_cores = sorted(set(cores))
    thing_of = {index: index for index in unique_cores}
    candidates = unique_cores[:MOST_LINKED]
    if len({phrases[index].caption_index for index in candidates}) > 1:
        numbers = _link(wordings(captions, [phrases[index] for index in candidates]))
        thing_of.update(zip(candidates, (candidates[number] for number in numbers), strict=True))
    order: dict[int, int] = {}
    return tuple(order.setdefault(thing_of[core], len(order)) for core in cores)


def _cores(phrases: Sequence[Phrase]) -> list[int]:
    """Return for each phrase the index of the shortest phrase nested in it with the same head, usually its own."""
    same_head: dict[tuple[int, str], list[int]] = {}
    for index, phrase in enumerate(phrases):
        same_head.setdefault((phrase.caption_index, phrase.head), []).append(index)

    def length(index: int) -> int:
        return phrases[index].end - phrases[index].start

    cores = []
    for phrase in phrases:
        nested = [
            index
            for index in same_head[phrase.caption_index, phrase.head]
            if phrase.start <= phrases[index].start and phrases[index].end <= phrase.end
        ]
        cores.append(min(nested, key=length))
    return cores


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
    lists = things()
    lemma = lists.listed_form(phrase.head)
    kinds = sorted({path[0] for path in lists.paths.get(lemma, ())})
    return lemma, "people" if "people" in kinds else next(iter(kinds), "other")


@cache
def _numbers() -> Mapping[str, int]:
    """Return word -> the number that it means."""
    return {word: number for number in range(1, 11) for word in things().words[str(number)]}


def _wording(caption: str, phrase: Phrase, lemma: str, kind: str) -> Wording:
    lists = things().words
    words = phrase.text.split()
    parts = {part for word in words for part in word.split("-")}
    numbers = _numbers()
    counts = [numbers[word] for word in words if word in numbers]
    is_plural = phrase.plural or any(count > 1 for count in counts) or not lists["several"].isdisjoint(words)
    # Captions leave articles out: "shirt" may stand for shirts, while "man" is one man.
    count = counts[0] if counts else 1 if kind in (*_LIVING, "vehicles") and not is_plural else None
    traits = set(things().traits.get(lemma, ()))
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
            and things().listed_form(word) != lemma
        ),
        colours=frozenset(_SPELT_AS.get(part, part) for part in parts & lists["colour"]),
        traits=frozenset(traits),
        count=count,
        is_plural=is_plural,
        is_another=not lists["other"].isdisjoint(caption_words),
        before=next(iter(caption[: phrase.start].casefold().split()[-1:]), ""),
    )


def contradict(first: Wording, second: Wording) -> bool:
    """Return whether two phrases cannot name the same thing.

    They cannot if their numbers ("two men", "a man", "people") or the sexes of people differ.
    Two kinds of animals or of vehicles (a cat, a dog) cannot, either. Nor can clothes without a
    common colour; colours of other things may differ: the brown of one caption is the red of
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
        return relation(first.lemma, second.lemma) == "beside"
    if first.kind == "clothing":
        return bool(first.colours and second.colours and not first.colours & second.colours)
    sexes = first.traits & _SEXES, second.traits & _SEXES
    return bool(first.kind == "people" and all(sexes) and not sexes[0] & sexes[1])


def pair_features(first: Wording, second: Wording) -> dict[str, float]:
    """Return the features of two phrases of different captions, which may name the same thing. Missing ones are 0."""
    lemma_relation = relation(first.lemma, second.lemma)
    kind = first.kind if first.kind == second.kind else "mixed"
    common = first.modifiers & second.modifiers
    living = kind if kind in _LIVING else "things"
    conditions: dict[str, object] = {
        "modifiers_differ": not common and first.modifiers and second.modifiers,
        "head_inside": lemma_relation != "same" and (first.lemma in second.words or second.lemma in first.words),
        "number_differs": first.is_plural != second.is_plural,
        "both_several": first.is_plural and second.is_plural,
        "first": first.order == second.order == 0,
        "one_first": (first.order == 0) != (second.order == 0),
        "same_before": first.before == second.before and first.before,
        "one_other": first.is_another != second.is_another,
        "both_other": first.is_another and second.is_another,
    }
    if first.count and second.count:
        conditions["counts_equal"] = first.count == second.count > 1
        conditions[f"one_{living}"] = first.count == second.count == 1
    if kind == "people":
        ages = first.traits & _AGES, second.traits & _AGES
        conditions["sex_agrees"] = first.traits & second.traits & _SEXES
        conditions["age_agrees"] = ages[0] & ages[1]
        conditions["age_differs"] = all(ages) and not ages[0] & ages[1]
        conditions["child_or_not"] = ("child" in first.traits) != ("child" in second.traits)
    if first.colours and second.colours:
        conditions["colours_equal"] = first.colours == second.colours
        conditions["colours_overlap"] = first.colours & second.colours
        conditions[f"colours_differ_{living}"] = not first.colours & second.colours
    if kind not in ("mixed", "other"):
        are_several = first.of_kind > 1 or second.of_kind > 1
        conditions[f"only_{living}"] = not are_several
        conditions[f"same_order_{living}"] = are_several and first.order_in_kind == second.order_in_kind
    return {
        "bias": 1.0,
        lemma_relation: 1.0,
        "words": len(first.words & second.words) / len(first.words | second.words),
        "modifiers": float(min(2, len(common))),
        "distance": abs(first.place - second.place),
        **{name: 1.0 for name, holds in conditions.items() if holds},
    }


@cache
def _weights() -> Mapping[str, float]:
    content = json.loads(files(__package__).joinpath("groups.json").read_text(encoding="utf-8"))
    weights: dict[str, float] = content["weights"]
    return weights


def log_odds(first: Wording, second: Wording) -> float:
    """Return the log odds that two phrases of different captions name the same thing."""
    weights = _weights()
    return math.fsum(weights.get(name, 0.0) * value for name, value in pair_features(first, second).items())


def _link(wordings: Sequence[Wording]) -> list[int]:
    """Return a number for each wording, equal for those that name the same thing."""
    count = len(wordings)
    odds = np.full((count, count), _NEVER)
    for i, wording in enumerate(wordings):
        for j, earlier in enumerate(wordings[:i]):
            if wording.caption != earlier.caption and not contradict(wording, earlier):
                odds[i, j] = odds[j, i] = log_odds(earlier, wording)
    group = list(range(count))
    sizes = np.ones(count)
    while count:
        i, j = divmod(int(odds.argmax()), count)
        if odds[i, j] < LINK_FROM:
            break
        i, j = sorted([i, j])
        mean = (odds[i] * sizes[i] + odds[j] * sizes[j]) / (sizes[i] + sizes[j])
        odds[i] = odds[:, i] = mean
        odds[j] = odds[:, j] = odds[i, i] = _NEVER
        sizes[i] += sizes[j]
        group = [i if number == j else number for number in group]
    return group
