"""The closed vocabulary of the scenes: colours, kinds of things, and which pairs training never sees.

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

PLURALS: Final[dict[str, str]] = {
    "apple": "apples",
    "arrow": "arrows",
    "ball": "balls",
    "balloon": "balloons",
    "bell": "bells",
    "bird": "birds",
    "boat": "boats",
    "book": "books",
    "bottle": "bottles",
    "bus": "buses",
    "butterfly": "butterflies",
    "candle": "candles",
    "car": "cars",
    "cat": "cats",
    "chair": "chairs",
    "crown": "crowns",
    "cup": "cups",
    "fish": "fish",
    "flower": "flowers",
    "hat": "hats",
    "heart": "hearts",
    "house": "houses",
    "key": "keys",
    "kite": "kites",
    "ladder": "ladders",
    "lamp": "lamps",
    "leaf": "leaves",
    "moon": "moons",
    "mushroom": "mushrooms",
    "rocket": "rockets",
    "snail": "snails",
    "star": "stars",
    "table": "tables",
    "tent": "tents",
    "tree": "trees",
    "umbrella": "umbrellas",
}
"""Kind of thing (singular) -> plural."""

KINDS: Final[tuple[str, ...]] = tuple(PLURALS)
"""The kinds in a fixed order; the position is the kind's index and, plus one, its category id."""

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
