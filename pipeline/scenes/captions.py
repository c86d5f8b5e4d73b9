"""Words for scenes: which things a caption names, how, and where in the text each name stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from pipeline.scenes.vocabulary import (
    ABSENCE_TEMPLATES,
    COLOUR_NAMES,
    COUNT_TEMPLATES,
    HELDOUT_PAIRS,
    KINDS,
    LARGE_WORDS,
    NUMBER_WORDS,
    PLACE_WORDS,
    PLAIN_TEMPLATES,
    PLURALS,
    SMALL_WORDS,
    VAGUE_TEMPLATES,
    Split,
)

T = TypeVar("T")

DETERMINERS: Final = ("a", "an", "the", "some")
"""Words before a phrase that its normalised form leaves out."""

_SMALL_REL: Final = 0.22
_LARGE_REL: Final = 0.42
_FORMS: Final[dict[str, float]] = {"plain": 0.78, "vague": 0.10, "absence": 0.08, "count": 0.04}
"""How often a training caption takes each form."""


@dataclass(frozen=True, slots=True)
class DrawnThing:
    """What a caption may know of an object.

    Attributes:
        kind: singular name.
        colour: colour name.
        size_rel: longer side relative to the image's side.
        centre_rel: x and y of the visible box's centre, 0-1.
    """

    kind: str
    colour: str
    size_rel: float
    centre_rel: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mention:
    """One phrase of a caption.

    Attributes:
        kind: kind named, or None ("something red").
        colour: colour named, or None ("a car").
        objects: positions of the objects it denotes, back to front; empty for a thing that is absent.
        absent: whether the caption says that it is not there.
        start, end: half-open character span in the caption, determiner included.
    """

    kind: str | None
    colour: str | None
    objects: tuple[int, ...]
    absent: bool = False
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and its phrases in order of appearance."""

    text: str
    mentions: tuple[Mention, ...]


Name = tuple[str, Mention]
"""The words of a mention that has no place in a text yet, and the mention."""


def write_captions(
    rng: np.random.Generator, things: Sequence[DrawnThing], split: Split, *, extra: int
) -> tuple[Caption, ...]:
    """One unambiguous caption, then `extra` captions for training.

    Args:
        rng: the only source of chance.
        things: the objects, at least one.
        split: "train" never names an absent pair of `HELDOUT_PAIRS`.
        extra: number of training captions.

    Returns:
        1 + extra captions.
    """
    return (_plain_caption(rng, things, exact=True), *(_training_caption(rng, things, split) for _ in range(extra)))


def absent_caption(rng: np.random.Generator, things: Sequence[DrawnThing]) -> Caption:
    """A caption that says of one thing that it is there, and it is not: "There is a blue car."

    Args:
        rng: the only source of chance.
        things: the objects, at least one.
    """
    name, mention = _absent_name(rng, things, "heldout")
    return _fill("There is a {0}.", [(name, mention)])


def phrase_of(caption: Caption, number: int, thing: DrawnThing) -> tuple[str, bool]:
    """How a caption names one object, lower case and without determiner, and whether it does at all.

    Args:
        caption: a scene's first caption.
        number: the object's position in the scene.
        thing: the object.

    Returns:
        ("red car", True), or ("<colour> <kind>", False) where the caption leaves it out.
    """
    for mention in caption.mentions:
        if number in mention.objects:
            words = caption.text[mention.start : mention.end].lower().split()
            if words[0] in DETERMINERS:
                words = words[1:]
            return " ".join(words), True
    return f"{thing.colour} {thing.kind}", False


def _training_caption(rng: np.random.Generator, things: Sequence[DrawnThing], split: Split) -> Caption:
    names, shares = zip(*_FORMS.items(), strict=True)
    name = names[int(np.searchsorted(np.cumsum(shares)[:-1], rng.random(), side="right"))]
    if name == "vague":
        return _fill(_pick(rng, VAGUE_TEMPLATES), [_vague_name(rng, things)])
    if name == "absence":
        present = _name_group(rng, things, _pick(rng, _groups(things)), exact=False)
        template = _pick(rng, ABSENCE_TEMPLATES)
        absent = _absent_name(rng, things, split)
        return _fill(template, [absent] if "{1}" not in template else [present, absent])
    if name == "count" and len(things) in NUMBER_WORDS:
        template = _pick(rng, COUNT_TEMPLATES).replace("{n}", NUMBER_WORDS[len(things)])
        return _fill(template, [])
    return _plain_caption(rng, things, exact=False)


def _plain_caption(rng: np.random.Generator, things: Sequence[DrawnThing], *, exact: bool) -> Caption:
    """Names one to four groups of things; sometimes leaves others out."""
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
        name = _name_group(rng, things, group, exact=exact)
        if used.intersection(name[1].objects):
            name = _name_group(rng, things, group, exact=exact, allow_kind_only=False)
        used.update(name[1].objects)
        names.append(name)
    several = any(len(mention.objects) > 1 for _, mention in names)
    templates = PLAIN_TEMPLATES[len(names)]
    if several:
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
    rng: np.random.Generator,
    things: Sequence[DrawnThing],
    group: tuple[int, ...],
    *,
    exact: bool,
    allow_kind_only: bool = True,
) -> Name:
    """A name for things of one kind and colour.

    Without the colour the name denotes every thing of the kind: an exact caption uses that only where it is
    the whole kind that is meant, so the name's objects may be more than the group.
    """
    kind, colour = things[group[0]].kind, things[group[0]].colour
    objects = group
    named_colour: str | None = colour
    if allow_kind_only and rng.random() < (0.16 if exact else 0.22):
        same_kind = tuple(k for k, thing in enumerate(things) if thing.kind == kind)
        named_colour, objects = None, same_kind
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


def _vague_name(rng: np.random.Generator, things: Sequence[DrawnThing]) -> Name:
    """Only a colour: "something red"."""
    colour = _pick(rng, things).colour
    objects = tuple(k for k, thing in enumerate(things) if thing.colour == colour)
    article = "an" if colour[0] in "aeiou" else "a"
    texts = [f"something {colour}", f"{article} {colour} thing", f"{article} {colour} object"]
    if len(objects) > 1:
        number = NUMBER_WORDS[len(objects)]
        texts = [f"{number} {colour} things", f"{number} {colour} objects", f"some {colour} things"]
    return _pick(rng, texts), Mention(None, colour, objects)


def _absent_name(rng: np.random.Generator, things: Sequence[DrawnThing], split: Split) -> Name:
    """A thing that is not in the scene, preferably one that is nearly there: its kind or its colour is."""
    kinds = {thing.kind for thing in things}
    pairs = {(thing.kind, thing.colour) for thing in things}
    like = _pick(rng, things)
    while True:
        kind, colour = _pick(rng, KINDS), _pick(rng, COLOUR_NAMES)
        chance = rng.random()
        if chance < 0.3:
            kind = like.kind
        elif chance < 0.6:
            colour = like.colour
        if chance > 0.75 and kind not in kinds:
            return kind, Mention(kind, None, (), absent=True)
        if (kind, colour) not in pairs and (split == "heldout" or (kind, colour) not in HELDOUT_PAIRS):
            return f"{colour} {kind}", Mention(kind, colour, (), absent=True)


def _where(rng: np.random.Generator, things: Sequence[DrawnThing], names: Sequence[Name]) -> str:
    """Words for where the first name's things are, seen from the second's, or a neutral word."""
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
    rest = template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        slot, _, rest = rest.partition("}")
        words, mention = names[int(slot)]
        if mention.absent and before.endswith(("a ", "A ")) and words[0] in "aeiou":
            before = before[:-1] + "n "
        start = len(text + before)
        text += before + words
        mentions.append(replace(mention, start=start, end=len(text)))
    text += rest
    return Caption(text[0].upper() + text[1:] if template[-1] == "." else text, tuple(mentions))
