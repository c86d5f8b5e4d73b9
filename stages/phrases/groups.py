"""Links the phrases of an image that name one object: "a boy", "young child" and "kid in a blue top" in three captions.

Mentions within one caption are linked first (`phrasebox.stages.phrases.mentions`).

docs/explanation/how-it-works.md says how. Average linkage with constraints is that of Davidson & Ravi (PKDD 2005).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np

from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.phrases.mentions import is_joined, link_mentions
from phrasebox.stages.phrases.wording import LIVING, SEXES, Wording, contradict, wordings

LINK_FROM: Final = -0.75
"""Least mean log odds of two groups to join them: a probability of 0.32. The best F1 of pairs
lies below even odds; it is flat from -1 to -0.5 (measured on images that the weights were not
fitted to)."""

MOST_LINKED: Final = 256
"""Most phrases of an image that are linked; all later ones are objects of their own. The time
grows with the square of their number: 0.7 ms for the 15 phrases of five captions, half a second
for 256."""

_NEVER: Final = -math.inf


_AGES: Final = frozenset({"child", "adult"})


def link_phrases(captions: Sequence[str], phrases: Sequence[Phrase]) -> tuple[int, ...]:
    """Return the number of the object that each phrase of an image's captions names, from 0 in the order of phrases.

    A phrase within another one of the same head ("a dog" in "a dog in a field") names its object.
    """
    cores = _cores(phrases)
    unique_cores = sorted(set(cores))
    object_of = {index: index for index in unique_cores}
    candidates = unique_cores[:MOST_LINKED]
    if not captions:  # as of phrases that were given for an image
        candidates = []
    named = wordings(captions, [phrases[index] for index in candidates])
    first_mentions = _first_mentions(named)
    firsts = sorted(set(first_mentions))
    numbers = dict(zip(firsts, _link([named[place] for place in firsts]), strict=True))
    for candidate, first in zip(candidates, first_mentions, strict=True):
        object_of[candidate] = candidates[firsts[numbers[first]]]
    order: dict[int, int] = {}
    return tuple(order.setdefault(object_of[core], len(order)) for core in cores)


def _first_mentions(named: list[Wording]) -> list[int]:
    """Return for each wording the first one of its caption that names its object.

    The sentences of joined captions become captions of their own in `named`.
    """
    first_mentions = list(range(len(named)))
    captions: dict[int, list[int]] = {}
    for place, wording in enumerate(named):
        captions.setdefault(wording.caption, []).append(place)
    beyond = max(captions, default=0) + 1
    for places in captions.values():
        places.sort(key=lambda place: named[place].order)
        caption_wordings = [named[place] for place in places]
        if is_joined(caption_wordings):
            for place in places:
                named[place] = replace(named[place], caption=beyond + named[place].sentence)
            beyond += 1 + named[places[-1]].sentence
        else:
            for place, first in zip(places, link_mentions(caption_wordings), strict=True):
                first_mentions[place] = places[first]
    return first_mentions


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


def pair_features(first: Wording, second: Wording) -> dict[str, float]:
    """Return the features of two phrases of different captions, which may name the same object. Missing ones are 0."""
    lemma_relation = first.relation_to(second)
    kind = first.kind if first.kind == second.kind else "mixed"
    common = first.modifiers & second.modifiers
    living = kind if kind in LIVING else "things"
    conditions: dict[str, object] = {
        "modifiers_differ": not common and first.modifiers and second.modifiers,
        "head_inside": lemma_relation != "same"
        and (first.lemma in second.words or second.lemma in first.words),
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
        conditions["sex_agrees"] = first.traits & second.traits & SEXES
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
    """Return the log odds that two phrases of different captions name the same object."""
    weights = _weights()
    return math.fsum(weights.get(name, 0.0) * value for name, value in pair_features(first, second).items())


def _link(wordings: Sequence[Wording]) -> list[int]:
    """Return a number for each wording, equal for those that name the same object."""
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
