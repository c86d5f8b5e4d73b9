"""Phrases of other images that are asked of an image, because they likely name nothing in it."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from phrasebox.stages.contract.records import Phrase
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.phrases.nouns import relation

PhraseOfImage = tuple[int, Phrase]
"""The number of an image, and one of its phrases."""

_TRIES: Final = (
    200  # draws for one phrase; an image that shares words with nearly all others gets fewer phrases
)

_WORD: Final = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.casefold())


def may_be(head: str, named: str, language: str = ENGLISH_CODE, other_language: str | None = None) -> bool:
    """Return whether an object that one head noun names may be called by another, see `relation`."""
    return relation(head, named, language, other_language) in ("same", "equal", "above")


def draw_phrases(
    rng: random.Random,
    pools: Iterable[Sequence[PhraseOfImage]],
    *,
    image: int,
    words: Collection[str],
    heads: Collection[tuple[str, str]] = (),
    languages: Collection[str],
) -> tuple[Phrase, ...]:
    """Draw a phrase of another image from each pool, with different texts; fewer where a pool has none that fits.

    Args:
        rng: Chooses the phrases.
        pools: Phrases to draw from.
        image: The number of the image that will be asked for them.
        words: Words that a phrase may not have, and its head noun may not be.
        heads: Head nouns of objects that the head of a phrase may not name, each with its language.
        languages: Those of the image's captions. Words of other languages cannot be compared with
            them, so that their phrases are not drawn.
    """
    drawn: dict[str, Phrase] = {}

    def is_foreign(phrase: Phrase) -> bool:
        shares_words = any(word in words for word in (*words_of(phrase.text), phrase.head))
        return (
            phrase.language in languages
            and not shares_words
            and not any(may_be(phrase.head, head, phrase.language, other) for head, other in heads)
        )

    for pool in pools:
        for _ in range(_TRIES):
            owner, phrase = pool[rng.randrange(len(pool))]
            if owner != image and phrase.text not in drawn and is_foreign(phrase):
                drawn[phrase.text] = phrase
                break
    return tuple(drawn.values())
