"""Captions of scenes: their text, the names of objects in it, and the places of the names.

The vocabulary is closed: an English parser takes every kind for a noun and every colour for an
adjective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    "apple", "arrow", "ball", "balloon", "bell", "bird", "boat", "book", "bottle", "bus", "butterfly", "candle",
    "car", "cat", "chair", "crown", "cup", "fish", "flower", "hat", "heart", "house", "key", "kite",
    "ladder", "lamp", "leaf", "moon", "mushroom", "rocket", "snail", "star", "table", "tent", "tree", "umbrella",
)  # fmt: skip
"""The kinds of objects in a fixed order; the position is the kind's index and, plus one, its
category id."""

_IRREGULAR: Final = {"bus": "buses", "butterfly": "butterflies", "fish": "fish", "leaf": "leaves"}

PLURALS: Final[dict[str, str]] = {kind: _IRREGULAR.get(kind, f"{kind}s") for kind in KINDS}
"""Kind of object (singular) -> plural."""

COLOUR_NAMES: Final = tuple(COLOURS)  # The position is the colour's index
NUMBER_WORDS: Final = {
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
}  # Counts that captions spell out
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
"""Relation -> words between the name of an object and the name of the object that it is related
to."""

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
"""Number of phrases -> sentences.

"{0}", "{1}", ... are phrases, "{where}" is a phrase of place.
"""

DETERMINERS: Final = ("a", "an", "the", "some")  # Words before a phrase that its normalised form leaves out
_SMALL_REL: Final = 0.22
_LARGE_REL: Final = 0.42


@dataclass(frozen=True, slots=True)
class CaptionObject:
    """The properties of an object that captions depend on.

    Attributes:
        kind: In the singular.
        colour: The name of the colour.
        size_rel: Its longer side relative to the image's side.
        centre_rel: x and y of the visible box's centre, 0 .. 1.
    """

    kind: str
    colour: str
    size_rel: float
    centre_rel: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mention:
    """One phrase of a caption.

    Attributes:
        objects: Positions of the objects that it denotes, back to front.
        start, end: Its characters, half open, determiner included.
    """

    objects: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and its phrases in order of appearance."""

    text: str
    mentions: tuple[Mention, ...]


Name = tuple[str, tuple[int, ...]]  # words, and the positions of the objects that they denote


def phrase_of(caption: Caption, number: int, item: CaptionObject) -> tuple[str, bool]:
    """Return a caption's name for object `number`, in lower case and without determiner, and True.

    Return "<colour> <kind>" and False if the caption does not name the object.
    """
    for mention in caption.mentions:
        if number in mention.objects:
            words = caption.text[mention.start : mention.end].lower().split()
            return " ".join(words[words[0] in DETERMINERS :]), True
    return f"{item.colour} {item.kind}", False


def write_caption(rng: np.random.Generator, objects: Sequence[CaptionObject]) -> Caption:
    """Return an unambiguous caption that names one to four groups of equal objects, sometimes not all groups."""
    groups = _groups(objects)
    order = rng.permutation(len(groups))
    most_groups = min(len(groups), 4)
    count = most_groups if rng.random() < 0.6 else int(rng.integers(1, most_groups + 1))
    chosen_groups = [groups[int(k)] for k in order[:count]]
    named_objects: set[int] = set()
    names = []
    for group in chosen_groups:
        if named_objects.intersection(group):
            continue
        name = _name_group(rng, objects, group)
        if named_objects.intersection(name[1]):
            name = _name_group(rng, objects, group, kind_share=0.0)
        named_objects.update(name[1])
        names.append(name)
    templates = PLAIN_TEMPLATES[len(names)]
    if any(len(members) > 1 for _, members in names):
        templates = tuple(template for template in templates if " is " not in template)
    template = _pick(rng, templates)
    if "{where}" in template:
        template = template.replace("{where}", _where(rng, objects, names))
    return _fill(template, names)


def _groups(objects: Sequence[CaptionObject]) -> list[tuple[int, ...]]:
    """Positions of objects, grouped by kind and colour."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, item in enumerate(objects):
        groups.setdefault((item.kind, item.colour), []).append(number)
    return [tuple(group) for group in groups.values()]


def _name_group(
    rng: np.random.Generator,
    objects: Sequence[CaptionObject],
    group: Sequence[int],
    kind_share: float = 0.16,
) -> Name:
    """Name a group of equal objects; with a probability all objects of the kind instead, without a colour."""
    kind = objects[group[0]].kind
    colour = objects[group[0]].colour
    members = tuple(group)
    words = [colour]
    if kind_share and rng.random() < kind_share:
        words = []
        members = tuple(k for k, item in enumerate(objects) if item.kind == kind)
    sizes = [objects[k].size_rel for k in members]
    if rng.random() < 0.22:
        if max(sizes) <= _SMALL_REL:
            words.insert(0, _pick(rng, SMALL_WORDS))
        elif min(sizes) >= _LARGE_REL:
            words.insert(0, _pick(rng, LARGE_WORDS))
    if len(members) == 1:
        words.append(kind)
        determiner = "the" if rng.random() < 0.2 else ("an" if words[0][0] in "aeiou" else "a")
    else:
        words.append(PLURALS[kind])
        determiner = (
            NUMBER_WORDS[len(members)] if rng.random() < 0.7 else ("some" if rng.random() < 0.6 else "")
        )
    text = " ".join([determiner, *words]).strip()
    return text, members


def _where(
    rng: np.random.Generator,
    objects: Sequence[CaptionObject],
    names: Sequence[Name],
) -> str:
    """Return words for the place of the first name's objects, seen from the second's, or a neutral word."""
    groups = [members for _, members in names[:2]]
    centres = [np.mean([objects[k].centre_rel for k in group], axis=0) for group in groups]
    dx, dy = (float(v) for v in centres[0] - centres[1])
    if max(abs(dx), abs(dy)) < 0.12 or any(len(group) > 1 for group in groups):
        return _pick(rng, PLACE_WORDS["near"])
    if abs(dx) > abs(dy):
        return _pick(rng, PLACE_WORDS["left" if dx < 0 else "right"])
    return _pick(rng, PLACE_WORDS["above" if dy < 0 else "below"])


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _fill(template: str, names: Sequence[Name]) -> Caption:
    """Put the names into "{0}", "{1}", ... and record their places."""
    text = ""
    mentions = []
    for literal, slot, _, _ in Formatter().parse(template):
        text += literal
        if slot is not None:
            words, members = names[int(slot)]
            mentions.append(Mention(members, len(text), len(text + words)))
            text += words
    return Caption(text[0].upper() + text[1:] if template[-1] == "." else text, tuple(mentions))
