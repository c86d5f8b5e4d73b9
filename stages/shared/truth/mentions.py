"""Which phrases of an image a target of the ground truth names, also where its captions spell a word otherwise.

Annotators who mark phrases in captions also mend them: Flickr30k Entities has "gray" where Flickr8k's file of the same
captions has "grey", "blond" for "blonde", and no misprints. Such a caption is the same caption, with the same phrases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Final

from stages.contract.records import Phrase
from stages.phrases.filters import normalise
from stages.shared.truth.ground_truth import TruthTarget

SAME_CAPTION: Final = 0.95
"""Share of letters and digits in which two captions agree, at least, to be one (`difflib.SequenceMatcher.ratio`)."""

SAME_WORD: Final = 0.6
"""The same for a word that stands for another in them: "grey" for "gray" is 0.75, "blue" for "red" less than 0.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """How the captions of an image spell one caption of the ground truth.

    Attributes:
        numbers: The same captions; empty if there is none.
        words: Words of the ground truth that the captions spell otherwise -> their spelling.
    """

    numbers: frozenset[int]
    words: Mapping[str, str] = field(default_factory=dict)

    def phrase(self, phrase: str) -> str:
        """A normalised phrase of the ground truth as these captions have it."""
        if not self.words:
            return phrase
        return normalise(" ".join(self.words.get(word, word) for word in phrase.split()))


@lru_cache(maxsize=1024)
def bare(caption: str) -> str:
    """The caption's letters and digits. Each target of an image asks for those of all its captions."""
    return "".join(filter(str.isalnum, caption.casefold()))


@lru_cache(maxsize=1024)
def spelled(caption: str, captions: tuple[str, ...]) -> Spelled:
    """Find a caption of the ground truth among the captions of an image.

    Every caption with the same letters and digits is the same one. If there is none, it is the most similar one, from
    `SAME_CAPTION` on, the first of equals, unless a word is another and not another spelling (`SAME_WORD`).
    """
    wanted = bare(caption)
    same = frozenset(number for number, each in enumerate(captions) if bare(each) == wanted)
    if same or not captions:
        return Spelled(numbers=same)
    alike = [_alike(wanted, bare(each)) for each in captions]
    nearest = max(range(len(captions)), key=alike.__getitem__)
    words = dict(_other_words(caption, captions[nearest]))
    if alike[nearest] < SAME_CAPTION or any(_alike(*each) < SAME_WORD for each in words.items()):
        return Spelled(numbers=frozenset())
    return Spelled(numbers=frozenset([nearest]), words=words)


def _alike(text: str, other: str) -> float:
    return SequenceMatcher(None, text, other, autojunk=False).ratio()


def _other_words(caption: str, other: str) -> Iterator[tuple[str, str]]:
    """Words of a caption and their counterparts in another, case folded."""
    ours, theirs = caption.casefold().split(), other.casefold().split()
    for kind, start, end, other_start, other_end in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind != "replace":
            continue
        if end - start == other_end - other_start:
            yield from zip(ours[start:end], theirs[other_start:other_end], strict=True)
        elif end - start == 1:
            yield ours[start], " ".join(theirs[other_start:other_end])


def mentions_of(target: TruthTarget, captions: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """Numbers of the phrases of an image that answer a target.

    Args:
        target: What is looked for.
        captions: Of the image.
        phrases: Of its captions, also what no caption says.
    """
    if target.match == "category":
        return [n for n, phrase in enumerate(phrases) if target.phrase in (phrase.text, phrase.head)]
    if target.caption is None:
        own = Spelled(numbers=frozenset(range(len(captions))))
    else:
        own = spelled(target.caption, tuple(captions))
    near = [n for n, phrase in enumerate(phrases) if phrase.is_said and phrase.caption_index in own.numbers]
    wanted = own.phrase(target.phrase)
    named = [n for n in near if phrases[n].text == wanted]
    if not named and target.match == "expression" and near:
        return [min(near, key=lambda n: phrases[n].start)]
    return named
