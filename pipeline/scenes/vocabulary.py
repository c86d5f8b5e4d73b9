"""The closed vocabulary of the scenes: colours, kinds, the sentences of captions, and what training never sees.

Every word is one that an English parser takes for a noun (kinds) or an adjective (colours) in a caption.
"""

from __future__ import annotations

from typing import Final, Literal

Split = Literal["train", "heldout"]

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 34, 36),
    "orange": (245, 132, 20),
    "yellow": (246, 214, 36),
    "green": (44, 158, 58),
    "blue": (36, 84, 210),
    "purple": (126, 48, 168),
    "pink": (246, 138, 186),
    "brown": (122, 74, 36),
    "black": (26, 26, 28),
    "white": (246, 246, 244),
}
"""Colour name -> mean RGB, 0-255. Each object's colour is jittered around it."""

KINDS: Final[tuple[str, ...]] = (
    *("apple", "arrow", "ball", "balloon", "bell", "bird", "boat", "book", "bottle", "bus", "butterfly", "candle"),
    *("car", "cat", "chair", "crown", "cup", "fish", "flower", "hat", "heart", "house", "key", "kite"),
    *("ladder", "lamp", "leaf", "moon", "mushroom", "rocket", "snail", "star", "table", "tent", "tree", "umbrella"),
)
"""The kinds of things in a fixed order; the position is the kind's index and, plus one, its category id."""

_IRREGULAR: Final = {"bus": "buses", "butterfly": "butterflies", "fish": "fish", "leaf": "leaves"}

PLURALS: Final[dict[str, str]] = {kind: _IRREGULAR.get(kind, f"{kind}s") for kind in KINDS}
"""Kind of thing (singular) -> plural."""

COLOUR_NAMES: Final[tuple[str, ...]] = tuple(COLOURS)
"""The colours in a fixed order; the position is the colour's index."""

NUMBER_WORDS: Final[dict[int, str]] = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
"""Counts that captions spell out."""

SMALL_WORDS: Final[tuple[str, ...]] = ("small", "tiny", "little")
LARGE_WORDS: Final[tuple[str, ...]] = ("big", "large", "huge")

HELDOUT_PAIRS: Final[frozenset[tuple[str, str]]] = frozenset(
    (KINDS[i], COLOUR_NAMES[(i * 7 + 3) % len(COLOUR_NAMES)]) for i in range(0, len(KINDS), 3)
) | frozenset((KINDS[i], COLOUR_NAMES[(i * 3 + 1) % len(COLOUR_NAMES)]) for i in range(1, len(KINDS), 3))
"""(kind, colour) pairs that no scene of the split "train" shows or names: 24 of the 360."""

PLACE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("to the left of", "on the left of", "to the left of"),
    "right": ("to the right of", "on the right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("next to", "beside", "near", "next to"),
}
"""Relation -> words for it, between the thing that is there and the thing it is seen from."""

PLAIN_TEMPLATES: Final[dict[int, tuple[str, ...]]] = {
    1: (
        "{0}",
        "{0}",
        "{0}.",
        "a photo of {0}",
        "a picture of {0}",
        "an image of {0}",
        "{0} in the picture",
        "There is {0} here.",
        "we see {0}",
        "here is {0}",
    ),
    2: (
        "{0} and {1}",
        "{0} with {1}",
        "{0} {where} {1}",
        "{0} {where} {1}",
        "{0} {where} {1}.",
        "{0} is {where} {1}.",
        "a photo of {0} and {1}",
        "a picture of {0} {where} {1}",
        "There is {0} {where} {1}.",
        "We see {0} and {1}.",
        "an image of {0} with {1}",
        "you can see {0} and {1}",
    ),
    3: (
        "{0}, {1} and {2}",
        "{0}, {1}, and {2}.",
        "{0} {where} {1}, and {2}",
        "{0} and {2} with {1}",
        "a picture of {0}, {1} and {2}",
        "a photo of {0} with {1} and {2}",
        "{0} is {where} {1}, and there is {2}.",
        "We see {0}, {1} and {2}.",
        "{0}, with {1} and {2} in the picture",
    ),
    4: (
        "{0}, {1}, {2} and {3}",
        "{0} and {1} with {2} and {3}",
        "a picture of {0}, {1}, {2} and {3}",
        "{0} {where} {1}, with {2} and {3}.",
        "There is {0} {where} {1}, {2} and {3}.",
        "We see {0}, {1}, {2}, and {3}.",
    ),
}
"""Number of phrases -> sentences that name only what is there. "{0}", "{1}", ... are phrases, "{where}" is a phrase of
place."""

VAGUE_TEMPLATES: Final[tuple[str, ...]] = (
    "{0}",
    "a picture of {0}",
    "there is {0}",
    "we see {0} here",
    "a photo of {0}",
)
"""Sentences around a name that gives only a colour."""

ABSENCE_TEMPLATES: Final[tuple[str, ...]] = (
    "{0} but no {1}",
    "{0} without a {1}",
    "{0}, and no {1}",
    "a picture of {0} without a {1}",
    "there is {0} but there is no {1}",
    "no {0}",
    "there is no {0} here",
    "a picture without a {0}",
)
"""Sentences whose last phrase is a thing that is not there."""

COUNT_TEMPLATES: Final[tuple[str, ...]] = (
    "{n} things",
    "{n} objects",
    "a picture of {n} things",
    "there are {n} things in the picture",
    "a photo with {n} objects",
)
"""Sentences that only count; "{n}" is a number word."""


def all_templates() -> tuple[str, ...]:
    """Every sentence and phrase of place, in a fixed order."""
    plain = tuple(template for templates in PLAIN_TEMPLATES.values() for template in templates)
    places = tuple(words for choices in PLACE_WORDS.values() for words in choices)
    return plain + places + VAGUE_TEMPLATES + ABSENCE_TEMPLATES + COUNT_TEMPLATES
