"""Captions that never repeat, as those of photographs do: of 5,000 captions of Flickr8k 4,997 differ.

A cache of texts that knows the captions hides the largest cost of a run. Their phrases come again, as they do in a
real input: of the texts of phrases in 800 images about four an image are new.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import Final

PEOPLE: Final = (
    *("man", "woman", "boy", "girl", "child", "toddler", "cyclist", "skateboarder", "climber", "tourist"),
    *("dog", "puppy", "horse", "cat", "football player", "surfer", "couple", "crowd", "family", "teenager"),
)
LOOKS: Final = (
    *("young", "small", "large", "tall", "blond", "smiling", "wet", "dark-haired", "barefoot", "muddy"),
    *("bearded", "tired", "shaggy", "lone", "thin", "sleepy", "happy", "cheerful", "quiet", "grey-haired"),
)
VERBS: Final = (
    *(
        "is running past",
        "jumps over",
        "sits beside",
        "walks towards",
        "is holding",
        "looks at",
        "leans on",
    ),
    *(
        "is playing with",
        "carries",
        "is pulling",
        "stands in front of",
        "climbs onto",
        "rides past",
        "throws",
    ),
)
THINGS: Final = (
    *(
        "ball",
        "bicycle",
        "wooden fence",
        "stick",
        "skateboard",
        "bench",
        "red car",
        "frisbee",
        "tent",
        "rock",
    ),
    *(
        "blue umbrella",
        "surfboard",
        "ladder",
        "kayak",
        "backpack",
        "guitar",
        "tree trunk",
        "swing",
        "cart",
        "boat",
    ),
)
PLACES: Final = (
    *("on the beach", "in a grassy field", "near a river", "on a city street", "in the snow", "at a park"),
    *(
        "under a bridge",
        "beside a swimming pool",
        "on a dirt path",
        "in front of a brick building",
        "at night",
    ),
)


def make_captions(count: int, seed: int = 0) -> list[str]:
    """Return different captions of seven to sixteen words, always the same ones for a seed."""
    draw = random.Random(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[_caption(draw)] = None
    return list(islice(captions, count))


def _caption(draw: random.Random) -> str:
    look = f"{draw.choice(LOOKS)} " if draw.random() < 0.7 else ""
    other = f"{draw.choice(LOOKS)} {draw.choice(PEOPLE)}" if draw.random() < 0.4 else draw.choice(THINGS)
    words = f"a {look}{draw.choice(PEOPLE)} {draw.choice(VERBS)} a {other} {draw.choice(PLACES)} ."
    words = " ".join(words.split())
    return words[0].upper() + words[1:]
