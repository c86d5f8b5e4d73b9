"""Phrases that are not in an image: which to ask for.

Each image is asked for phrases of other images, as many as it has phrases with a known place.
Such a phrase shares no word and no head noun with the image's captions. Its head noun names
nothing that the ground truth knows to be in the image. Some of these phrases are in the image
all the same ("bike" where the captions say "bicycle"), so no figure can be perfect.
`without_synonyms` leaves a phrase out if its head noun may name an object of the captions
("person", "man").

Besides these random phrases there are four harder kinds, which count in no other figure (POPE,
EMNLP 2023, has `random` and `adversarial`):

    same_type     of the same type (people, clothing, ...; Flickr30k Entities names types) as a phrase of the image
    adversarial   with the head nouns that share most images with those of the image and are not among them. Clothing
                  and parts of the body are excluded, because captions often leave them out
    attribute     a phrase of the image in another colour, which no caption says: compared with coloured phrases alone
    said          a phrase that a caption says, and that is false according to the ground truth
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, permutations
from typing import Final

from phrasebox.pipeline.evaluate.matching import Query
from phrasebox.stages.contract.records import Phrase, stable_id
from phrasebox.stages.phrases.foreign import PhraseOfImage, draw_phrases, may_be, words_of
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.phrases.nouns import noun_lists

HARDER: Final = ("same_type", "adversarial", "attribute", "said")

COLOURS: Final = ("black", "white", "red", "blue", "green", "yellow", "orange", "pink", "purple", "brown")

UNMENTIONED_KINDS: Final = ("clothing", "body")  # sections of nouns.txt


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriedImage:
    """An image with its captions and phrases, and the phrases to look for in it.

    Attributes:
        number, sample_id, captions, phrases: Those of the dataset's row.
        queries: The phrases that the ground truth knows, present or absent.
        present: Names of objects that the ground truth knows to be in the image.
        absent: Phrases that are not in the image, by kind: "random" and the first of `HARDER`.
        voters: Text of an absent phrase -> phrases that name the same object in the phrase's own
            image.
    """

    number: int
    sample_id: str
    captions: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    queries: tuple[Query, ...]
    present: Collection[str]
    absent: Mapping[str, tuple[Phrase, ...]] = field(default_factory=dict)
    voters: Mapping[str, tuple[Phrase, ...]] = field(default_factory=dict)

    @property
    def types_by_text(self) -> dict[str, str]:
        """Text -> type, for the phrases that the ground truth has a place for; "" if their type is unknown."""
        return {
            query.phrase: query.target.groups.get("type", "")
            for query in self.queries
            if query.target is not None and query.phrase is not None
        }

    @property
    def judged_texts(self) -> set[str | None]:
        """Texts of the image's phrases and of random absent ones, if it is known whether they are in the image."""
        return {
            *(query.phrase for query in self.queries),
            *(phrase.text for phrase in self.absent["random"]),
        }

    @property
    def all_phrases(self) -> tuple[Phrase, ...]:
        """All phrases to look for, those of the image first."""
        return (*self.phrases, *chain(*self.absent.values(), *self.voters.values()))


class PhrasePool:
    """The phrases of all images that the ground truth has a place for, from which absent phrases are drawn.

    Attributes:
        placed: Number of the image and phrase.
        by_type, by_head: The same by type and by head noun.
        aliases: Phrase -> the phrases of its image that name the same object, itself among them.
        companions: Head noun -> number of images that it shares with each other head noun.
    """

    def __init__(self, images: Sequence[QueriedImage]) -> None:
        self.placed: list[PhraseOfImage] = []
        self.by_type: dict[str, list[PhraseOfImage]] = {}
        self.by_head: dict[str, list[PhraseOfImage]] = {}
        self.aliases: dict[Phrase, list[Phrase]] = {}
        self.companions: dict[str, Counter[str]] = {}
        for image in images:
            self._add(image)

    def _add(self, image: QueriedImage) -> None:
        phrase_by_text = {phrase.text: phrase for phrase in reversed(image.phrases)}
        objects = dict(zip(image.phrases, link_phrases(image.captions, image.phrases), strict=True))
        for text, kind in image.types_by_text.items():
            if text in phrase_by_text:
                phrase = phrase_by_text[text]
                self.placed.append((image.number, phrase))
                self.by_type.setdefault(kind, []).append(self.placed[-1])
                self.by_head.setdefault(phrase.head, []).append(self.placed[-1])
                self.aliases[phrase] = [
                    alias for alias in phrase_by_text.values() if objects[alias] == objects[phrase]
                ]
        for head, companion in permutations(dict.fromkeys(phrase.head for phrase in image.phrases), 2):
            self.companions.setdefault(head, Counter())[companion] += 1

    def nearest_heads(self, heads: Collection[str]) -> list[str]:
        """Return the head nouns that share most images with `heads`, and whose objects would be mentioned with them."""
        neighbours: Counter[str] = sum((self.companions.get(head, Counter()) for head in heads), Counter())
        # Each process orders a set of head nouns differently.
        ranking = sorted(neighbours, key=lambda head: (-neighbours[head], head))
        return [head for head in ranking if head in self.by_head and _is_evidence(head, heads)]


def choose_absent_phrases(images: Sequence[QueriedImage]) -> dict[int, QueriedImage]:
    """Return the images with phrases that are not in them, by the image's number.

    The same images in the same order give the same phrases, in every process.
    """
    pool = PhrasePool(images)
    return {image.number: _with_absent_phrases(image, pool) for image in images}


def _with_absent_phrases(image: QueriedImage, pool: PhrasePool) -> QueriedImage:
    rng = random.Random(stable_id(image.sample_id))  # noqa: S311  which phrases are asked for is no secret
    image_words = {word for caption in image.captions for word in words_of(caption)} | set(image.present)
    heads = {phrase.head for phrase in image.phrases}
    languages = {phrase.language for phrase in image.phrases}
    types = image.types_by_text
    candidates = {
        "random": [pool.placed for _ in types],
        "same_type": [pool.by_type[kind] for kind in types.values() if kind],
        "adversarial": [pool.by_head[head] for head in pool.nearest_heads(heads)[: len(types)]],
    }
    absent: dict[str, tuple[Phrase, ...]] = {}
    voters: dict[str, tuple[Phrase, ...]] = {}
    for kind, pools in candidates.items():
        absent[kind] = draw_phrases(
            rng, pools, image=image.number, words=image_words | heads, languages=languages
        )
        for phrase in absent[kind]:
            aliases = (alias for alias in pool.aliases[phrase] if alias != phrase)
            voters[phrase.text] = tuple(
                alias for alias in aliases if image_words.isdisjoint(words_of(alias.text))
            )
    variants = [_recolour(phrase, image_words, rng) for phrase in image.phrases if phrase.text in types]
    absent["attribute"] = tuple({phrase.text: phrase for phrase in variants if phrase}.values())
    return replace(image, absent=absent, voters=voters)


def _is_evidence(head: str, heads: Collection[str]) -> bool:
    """Return whether captions with the head nouns `heads` are evidence that no `head` is in the image.

    They are not if one of `heads` may name the same object, or if captions usually leave out objects
    of this kind.
    """
    kinds = {path[0] for path in noun_lists().paths.get(head, ())}
    is_alias = any(may_be(head, other) or may_be(other, head) for other in heads)
    return kinds.isdisjoint(UNMENTIONED_KINDS) and not is_alias


def _recolour(phrase: Phrase, image_words: Collection[str], rng: random.Random) -> Phrase | None:
    """Return a phrase with another colour, None if it has none."""
    words = phrase.text.split()
    colours = [colour for colour in COLOURS if colour not in image_words]
    index = next((at for at, word in enumerate(words) if word in COLOURS), None)
    if index is None or not colours:
        return None
    words[index] = rng.choice(colours)
    return replace(phrase, text=" ".join(words))


def is_coloured(phrase: str) -> bool:
    """Return whether a phrase names a colour that `attribute` exchanges."""
    return not set(COLOURS).isdisjoint(phrase.split())
