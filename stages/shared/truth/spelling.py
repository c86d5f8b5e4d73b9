"""Captions of a truth that spell a word otherwise than those of the dataset.

Who marks phrases in captions also mends them: Flickr30k Entities has "gray" where Flickr8k's file of the same captions
has "grey", "blond" for "blonde", and without its misprints. Such a caption is the same caption, and its phrases are the
same phrases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Final

from stages.phrases.filters import normalise

SAME_CAPTION: Final = 0.95
"""Share of letters and digits in which two captions agree, at least, to be one (`difflib.SequenceMatcher.ratio`)."""

SAME_WORD: Final = 0.6
"""The same for a word that stands for another in them: "grey" for "gray" is .75, "blue" for "red" less than .3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """How the captions of an image spell one caption of the truth.

    Attributes:
        numbers: The captions that are it. Empty where none is.
        words: Words of the truth that are others there, and what they are.
    """

    numbers: frozenset[int]
    words: Mapping[str, str] = field(default_factory=dict)

    def phrase(self, phrase: str) -> str:
        """A normalised phrase of the truth as these captions have it."""
        if not self.words:
            return phrase
        return normalise(" ".join(self.words.get(word, word) for word in phrase.split()))


@lru_cache(maxsize=1024)
def bare(caption: str) -> str:
    """The caption's letters and digits. Each target of an image asks for those of all its captions."""
    return "".join(filter(str.isalnum, caption.casefold()))


@lru_cache(maxsize=1024)
def spelled(caption: str, captions: tuple[str, ...]) -> Spelled:
    """How the captions of an image spell a caption of the truth.

    It is every caption with the same letters and digits. If none has, it is the one that resembles it most, from
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
    """Words of a caption, and what stands for them in another, case folded."""
    ours, theirs = caption.casefold().split(), other.casefold().split()
    for kind, start, end, other_start, other_end in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind != "replace":
            continue
        if end - start == other_end - other_start:
            yield from zip(ours[start:end], theirs[other_start:other_end], strict=True)
        elif end - start == 1:
            yield ours[start], " ".join(theirs[other_start:other_end])
