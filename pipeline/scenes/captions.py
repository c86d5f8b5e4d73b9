"""Captions of scenes: the things that each names, their names and the places of these in the text.

The vocabulary is closed: every word is one that an English parser takes for a noun (kinds) or an adjective (colours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Final, TypeVar

import numpy as np

T = TypeVar("T")

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

COLOUR_NAMES: Final = tuple(COLOURS)  # The position is the colour's index
NUMBER_WORDS: Final = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}  # Counts that captions spell out
SMALL_WORDS: Final[tuple[str, ...]] = ("small", "tiny", "little")
LARGE_WORDS: Final[tuple[str, ...]] = ("big", "large", "huge")

HELDOUT_PAIRS: Final[frozenset[tuple[str, str]]] = frozenset(
    (KINDS[i], COLOUR_NAMES[(i * 7 + 3) % len(COLOUR_NAMES)]) for i in range(0, len(KINDS), 3)
) | frozenset((KINDS[i], COLOUR_NAMES[(i * 3 + 1) % len(COLOUR_NAMES)]) for i in range(1, len(KINDS), 3))
"""(kind, colour) pairs that `demo` never saw in its training: 24 of the 360."""

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
        *("{0}", "{0}", "{0}.", "a photo of {0}", "a picture of {0}", "an image of {0}", "{0} in the picture"),
        *("There is {0} here.", "we see {0}", "here is {0}"),
    ),
    2: (
        *("{0} and {1}", "{0} with {1}", "{0} {where} {1}", "{0} {where} {1}", "{0} {where} {1}."),
        *("{0} is {where} {1}.", "a photo of {0} and {1}", "a picture of {0} {where} {1}"),
        *("There is {0} {where} {1}.", "We see {0} and {1}.", "an image of {0} with {1}", "you can see {0} and {1}"),
    ),
    3: (
        *("{0}, {1} and {2}", "{0}, {1}, and {2}.", "{0} {where} {1}, and {2}", "{0} and {2} with {1}"),
        *("a picture of {0}, {1} and {2}", "a photo of {0} with {1} and {2}"),
        *("{0} is {where} {1}, and there is {2}.", "We see {0}, {1} and {2}."),
        *("{0}, with {1} and {2} in the picture",),
    ),
    4: (
        *("{0}, {1}, {2} and {3}", "{0} and {1} with {2} and {3}", "a picture of {0}, {1}, {2} and {3}"),
        *("{0} {where} {1}, with {2} and {3}.", "There is {0} {where} {1}, {2} and {3}."),
        *("We see {0}, {1}, {2}, and {3}.",),
    ),
}
"""Number of phrases -> sentences. "{0}", "{1}", ... are phrases, "{where}" is a phrase of
place."""

DETERMINERS: Final = ("a", "an", "the", "some")  # Words before a phrase that its normalised form leaves out
_SMALL_REL: Final = 0.22
_LARGE_REL: Final = 0.42


@dataclass(frozen=True, slots=True)
class DrawnThing:
    """An object as captions know it."""

    kind: str  # singular
    colour: str
    size_rel: float  # longer side relative to the image's side
    centre_rel: tuple[float, float]  # x and y of the visible box's centre, 0-1


@dataclass(frozen=True, slots=True)
class Mention:
    """One phrase of a caption; its characters are [start, end), determiner included."""

    kind: str
    colour: str | None  # None: "a car"
    objects: tuple[int, ...]  # positions of the objects it denotes, back to front
    absent: bool = False  # the caption says that it is not there
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and its phrases in order of appearance."""

    text: str
    mentions: tuple[Mention, ...]


Name = tuple[str, Mention]  # words of a mention that has no place in a text yet, and the mention


def absent_caption(rng: np.random.Generator, things: Sequence[DrawnThing]) -> Caption:
    """Return a caption that names a thing which is not there: "There is a blue car." """
    return _fill("There is a {0}.", [_absent_name(rng, things)])


def phrase_of(caption: Caption, number: int, thing: DrawnThing) -> tuple[str, bool]:
    """Return a caption's name for the object at a position, in lower case and without determiner, and True.

    Return "<colour> <kind>" and False if the caption leaves the object out.
    """
    for mention in caption.mentions:
        if number in mention.objects:
            words = caption.text[mention.start : mention.end].lower().split()
            return " ".join(words[words[0] in DETERMINERS :]), True
    return f"{thing.colour} {thing.kind}", False


def write_caption(rng: np.random.Generator, things: Sequence[DrawnThing]) -> Caption:
    """Return an unambiguous caption of one to four groups of things; sometimes others are left out."""
    groups = _groups(things)
    order = rng.permutation(len(groups))
    most = min(len(groups), 4)
    count = most if rng.random() < 0.6 else int(rng.integers(1, most + 1))
    chosen = [groups[int(k)] for k in order[:count]]
    used: set[int] = set()
    names = []
    for group in chosen:
        if used.intersection(group):
            continue
        name = _name_group(rng, things, group)
        if used.intersection(name[1].objects):
            name = _name_group(rng, things, group, kind_only=False)
        used.update(name[1].objects)
        names.append(name)
    templates = PLAIN_TEMPLATES[len(names)]
    if any(len(mention.objects) > 1 for _, mention in names):
        templates = tuple(template for template in templates if " is " not in template)
    template = _pick(rng, templates)
    if "{where}" in template:
        template = template.replace("{where}", _where(rng, things, names))
    return _fill(template, names)


def _groups(things: Sequence[DrawnThing]) -> list[tuple[int, ...]]:
    """Positions of things of equal kind and colour, grouped."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, thing in enumerate(things):
        groups.setdefault((thing.kind, thing.colour), []).append(number)
    return [tuple(group) for group in groups.values()]


def _name_group(
    rng: np.random.Generator, things: Sequence[DrawnThing], group: Sequence[int], *, kind_only: bool = True
) -> Name:
    """Name things of one kind and colour; sometimes every thing of the kind, without a colour: more than the group."""
    kind = things[group[0]].kind
    colour = things[group[0]].colour
    objects = tuple(group)
    named_colour: str | None = colour
    if kind_only and rng.random() < 0.16:
        named_colour = None
        objects = tuple(k for k, thing in enumerate(things) if thing.kind == kind)
    words = [colour] if named_colour else []
    sizes = [things[k].size_rel for k in objects]
    if rng.random() < 0.22:
        if max(sizes) <= _SMALL_REL:
            words.insert(0, _pick(rng, SMALL_WORDS))
        elif min(sizes) >= _LARGE_REL:
            words.insert(0, _pick(rng, LARGE_WORDS))
    if len(objects) == 1:
        words.append(kind)
        determiner = "the" if rng.random() < 0.2 else ("an" if words[0][0] in "aeiou" else "a")
    else:
        words.append(PLURALS[kind])
        determiner = NUMBER_WORDS[len(objects)] if rng.random() < 0.7 else ("some" if rng.random() < 0.6 else "")
    text = " ".join([determiner, *words]).strip()
    return text, Mention(kind, named_colour, objects)


def _absent_name(rng: np.random.Generator, things: Sequence[DrawnThing]) -> Name:
    """Name a thing that is not in the scene, preferably one that is nearly there: its kind or its colour is."""
    kinds = {thing.kind for thing in things}
    pairs = {(thing.kind, thing.colour) for thing in things}
    like = _pick(rng, things)
    while True:
        kind = _pick(rng, KINDS)
        colour = _pick(rng, COLOUR_NAMES)
        chance = rng.random()
        if chance < 0.3:
            kind = like.kind
        elif chance < 0.6:
            colour = like.colour
        if chance > 0.75 and kind not in kinds:
            return kind, Mention(kind, None, (), absent=True)
        if (kind, colour) not in pairs:
            return f"{colour} {kind}", Mention(kind, colour, (), absent=True)


def _where(rng: np.random.Generator, things: Sequence[DrawnThing], names: Sequence[Name]) -> str:
    """Return words for the place of the first name's things, seen from the second's, or a neutral word."""
    groups = [mention.objects for _, mention in names[:2]]
    centres = [np.mean([things[k].centre_rel for k in group], axis=0) for group in groups]
    dx, dy = (float(v) for v in centres[0] - centres[1])
    if max(abs(dx), abs(dy)) < 0.12 or any(len(group) > 1 for group in groups):
        return _pick(rng, PLACE_WORDS["near"])
    if abs(dx) > abs(dy):
        return _pick(rng, PLACE_WORDS["left" if dx < 0 else "right"])
    return _pick(rng, PLACE_WORDS["above" if dy < 0 else "below"])


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _fill(template: str, names: Sequence[Name]) -> Caption:
    """Put the names into "{0}", "{1}", ... and note where each stands."""
    text = ""
    mentions = []
    for before, slot, _, _ in Formatter().parse(template):
        text += before
        if slot is not None:
            words, mention = names[int(slot)]
            if mention.absent and text.endswith(("a ", "A ")) and words[0] in "aeiou":
                text = text[:-1] + "n "
            mentions.append(replace(mention, start=len(text), end=len(text + words)))
            text += words
    return Caption(text[0].upper() + text[1:] if template[-1] == "." else text, tuple(mentions))
