"""Where the box of a region is, given its map and its words: a fitted correction of the box that a cut gives.

A small network sees the boxes of a map at many cuts (`Ladder`), what the captions say of the
object, and where such objects usually are. Its answer is a change of the cut's box, which begins
at none. `pipeline/calibrate/box_fit.py` fits it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Final, NamedTuple, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from phrasebox.stages.phrases.nouns import noun_lists
from phrasebox.stages.scores.fits import Floats, HalfFloats, StoredModel

LADDER_CUTS: Final = np.array(
    [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
)  # shares of the highest heat

QUANTILES: Final = np.array([0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98])

LADDER_FEATURES: Final = 13 * len(LADDER_CUTS) + 2 * (len(QUANTILES) + 2) + 5


class Ladder(NamedTuple):
    """The cuts of one map: where its parts lie at each tells more of an object's edges than any one cut.

    `stages/regions/ladder.py` makes it. Coordinates are shares of the image's sides, and boxes x0, y0, x1, y1.

    Attributes:
        boxes: (2, cuts, 4), of the part with most heat at each cut, and of all its warm parts.
        parts: (cuts, 5), of the part with most heat: its shares of all heat and of the image, the
            share of all heat in its box, the number of parts beside it, and whether it holds the
            highest heat.
        profile: (27,), quantiles, mean and spread of the heat along both sides; the place of the
            highest heat; entropy, mean heat, and the share of the image above half of the highest.
    """

    boxes: Floats
    parts: Floats
    profile: Floats

    @property
    def features(self) -> Floats:
        """All numbers, (LADDER_FEATURES,)."""
        return np.concatenate([self.boxes.ravel(), self.parts.ravel(), self.profile])


FACTS: Final = (
    *("aspect", "plural", "phrases", "captions", "order", "first"),
    *("texts", "things", "similarity", "presence", "usual_size"),
)
"""Facts about an object: the logarithm of its image's width by height; the share of its phrases
that are plural, and their number; the share of captions that name it; the mean place of its
phrases in their captions as a share, and the lowest as a number; the number of its different
texts, and that of objects in the image; similarity; presence before `absent_share`; and
`FittedCut.usual_size`."""

INPUTS: Final = LADDER_FEATURES + 8 + len(FACTS) + 4
HIDDEN: Final = 64

_SIZES: Final = (INPUTS, HIDDEN, HIDDEN, 4)
_WEIGHTS: Final = sum((inputs + 1) * outputs for inputs, outputs in pairwise(_SIZES))

FARTHEST: Final = 5.0  # standard deviations of an input that count

LEAST_SIDE: Final = 0.02  # of a learned box, as a share of the image's

_Term = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-100, le=100)]
Place = tuple[_Term, _Term, _Term, _Term]


class UsualBoxes(StoredModel):
    """Where the objects that words name usually are: the centre of their box, and the logarithms of its sides.

    Attributes:
        mean: Of all objects; x, y, log width and log height as shares of the image.
        words: The words that add something, see `words_of`.
        terms: What each of them adds, (words, 4).
    """

    mean: Place
    words: tuple[str, ...]
    terms: HalfFloats

    @field_validator("terms")
    @classmethod
    def _split_rows(cls, values: Floats, info: ValidationInfo) -> Floats:
        if values.size != 4 * len(info.data.get("words", ())):
            raise ValueError("expected four numbers for each word")
        terms: Floats = values.reshape(-1, 4)
        return terms

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def of(self, heads: Mapping[str, str]) -> Floats:
        """Return the usual place (4,) of an object with these texts, each with its head noun."""
        words = (word for text, head in heads.items() for word in words_of(text, head))
        rows = [self._rows[word] for word in words if word in self._rows]
        place: Floats = np.array(self.mean) + self.terms[rows].sum(axis=0) / max(1, len(heads))
        return place


def words_of(text: str, head: str) -> list[str]:
    """Return the words of a text, its head noun as "=noun", and all kinds of the noun in the package's lists.

    >>> words_of("small dogs", "dog")[:5]
    ['small', 'dogs', '=dog', 'animals', 'animals/animal']
    """
    lemma = noun_lists().listed_form(head)
    paths = noun_lists().paths.get(lemma, ())
    kinds = dict.fromkeys("/".join(path[: depth + 1]) for path in paths for depth in range(len(path)))
    return [*text.split(), f"={lemma}", *kinds]


class BoxContext(NamedTuple):
    """What the fit sees of an object beside its map: its `FACTS`, and its usual place (4,), see `UsualBoxes.of`."""

    facts: Floats
    usual: Floats


class MapView(NamedTuple):
    """What the fit sees of a map: its ladder, the object's `FACTS`, its usual place (4,), and the cut's box (4,).

    The box is x0, y0, x1, y1 as shares of the image.
    """

    ladder: Ladder
    facts: Floats
    usual: Floats
    cut_box: Floats

    @property
    def inputs(self) -> Floats:
        """The inputs of a network, (INPUTS,)."""
        return np.concatenate(
            [self.ladder.features, self.cut_box, place_of(self.cut_box), self.facts, self.usual]
        )

    def evidence_of(self, box: Floats) -> dict[str, float]:
        """Return the evidence of a region with this box, by the names of `EVIDENCE`."""
        size = float(np.log(np.maximum(box[2:] - box[:2], 1e-3)).sum())
        usual_size = float(self.usual[2:].sum())
        ladder = self.ladder.boxes.reshape(-1, 4)
        sizes = (size, size**2, usual_size, usual_size * size)
        values = (
            sizes,
            (overlaps(box, ladder).mean(), overlaps(box, self.cut_box)),
            self.ladder.profile[-3:],
            (ladder.std(axis=0).mean(), *box),
            self.facts,
        )
        return dict(zip(EVIDENCE, np.concatenate(values).tolist(), strict=True))


EVIDENCE: Final = (
    *(
        "log_box_area",
        "log_box_area_squared",
        "usual_size",
        "usual_size_by_box_area",
        "agreement",
        "cut_overlap",
    ),
    *("entropy", "mean_heat", "warm_share", "ladder_spread", "left", "top", "right", "bottom"),
    *(f"of_thing_{name}" for name in FACTS),
)
"""Evidence of a region from its box: the logarithm of its share of the image, and that of the
usual box; the mean overlap with the ladder's boxes, and that with the cut's; three figures of
the map; the spread of the ladder's boxes; the edges; and the facts."""


class BoxModel(StoredModel):
    """The usual boxes of objects, and the networks that correct a cut's box; without networks the cut's box stays.

    Attributes:
        usual: Usual boxes.
        mean, scale: Of the inputs (INPUTS,), empty without networks.
        networks: Weights and biases of each, layer after layer. The answer is the mean of their boxes.
    """

    usual: UsualBoxes
    mean: HalfFloats
    scale: HalfFloats
    networks: Annotated[tuple[HalfFloats, ...], Field(max_length=8)]

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        inputs = INPUTS if self.networks else 0
        if self.mean.size != inputs or self.scale.size != inputs or not (self.scale > 0).all():
            raise ValueError(f"expected a mean and a scale above 0 of {inputs} inputs")
        if any(network.size != _WEIGHTS for network in self.networks):
            raise ValueError(f"expected {_WEIGHTS} numbers in each network")
        return self

    @cached_property
    def _layers(self) -> list[list[Floats]]:
        """The matrices of each network, (inputs + 1, outputs); the last row is the bias."""
        sizes = [((inputs + 1), outputs) for inputs, outputs in pairwise(_SIZES)]
        ends = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
        return [
            [part.reshape(size) for part, size in zip(np.split(network, ends), sizes, strict=True)]
            for network in self.networks
        ]

    def without_networks(self) -> Self:
        """Return the usual boxes alone: the cut's boxes stay."""
        return self.model_copy(update={"mean": np.empty(0), "scale": np.empty(0), "networks": ()})

    def with_moments(self, inputs: Floats) -> Self:
        """Return the same networks, which standardise their inputs by those of other maps, inputs (n, INPUTS)."""
        mean, scale = moments_of(inputs)
        return self.model_copy(update={"mean": mean, "scale": scale})

    def boxes_of(self, views: Sequence[MapView]) -> Floats:
        """Return the learned boxes (n, 4), x0, y0, x1, y1 as shares of the image, with six decimals.

        Without networks they are the cuts'.
        """
        cut_boxes = np.array([view.cut_box for view in views])
        if not self.networks or not views:
            return cut_boxes.reshape(-1, 4)
        inputs = np.array([view.inputs for view in views])
        values: Floats = np.clip((inputs - self.mean) / self.scale, -FARTHEST, FARTHEST)
        boxes = []
        for layers in self._layers:
            hidden = values
            for layer in layers[:-1]:
                hidden = gelu(hidden @ layer[:-1] + layer[-1])
            change = hidden @ layers[-1][:-1] + layers[-1][-1]
            sides = 1.0 / (1.0 + np.exp(-np.clip(logits_of(cut_boxes) + change, -30.0, 30.0)))
            centre = sides[:, :2]
            halves = sides[:, 2:] / 2
            boxes.append(np.hstack([centre - halves, centre + halves]))
        mean = np.clip(np.mean(boxes, axis=0), 0.0, 1.0).round(6)
        low = mean[:, :2]
        high = mean[:, 2:]
        high = np.minimum(np.maximum(high, low + LEAST_SIDE), 1.0)
        return np.hstack([np.minimum(low, high - LEAST_SIDE), high])


def moments_of(inputs: Floats) -> tuple[Floats, Floats]:
    """Return mean and scale of the inputs (n, INPUTS) of networks, as 16-bit floats have them."""
    mean = inputs.mean(axis=0).astype(np.float16).astype(np.float64)
    return mean, (inputs.std(axis=0) + 1e-3).astype(np.float16).astype(np.float64)


def gelu(values: Floats) -> Floats:
    """Return the activation of hidden values: x by about the share of a normal distribution below it.

    >>> gelu(np.array([-10.0, 0.0, 10.0])).tolist()
    [-0.0, 0.0, 10.0]
    """
    bent: Floats = 0.5 * values * (1.0 + np.tanh(0.7978845608 * (values + 0.044715 * values**3)))
    return bent


def place_of(box: Floats) -> Floats:
    """Return the centre and the logarithms of the sides (..., 4) of boxes (..., 4) in shares of the image."""
    centre, sides = _centre_and_sides(box)
    return np.concatenate([centre, np.log(np.maximum(sides, 0.01))], axis=-1)


def logits_of(box: Floats) -> Floats:
    """Return the logits of centre and sides (..., 4) of boxes, which a network changes."""
    shares = np.clip(np.concatenate(_centre_and_sides(box), axis=-1), 0.02, 0.98)
    return np.log(shares / (1 - shares))


def _centre_and_sides(box: Floats) -> tuple[Floats, Floats]:
    low = box[..., :2]
    high = box[..., 2:]
    return (low + high) / 2, high - low


def overlaps(box: Floats, boxes: Floats) -> Floats:
    """Return the intersection over union (...) of a box (4,) and boxes (..., 4), x0, y0, x1, y1."""
    shared = np.minimum(box[2:], boxes[..., 2:]) - np.maximum(box[:2], boxes[..., :2])
    common = np.maximum(shared, 0.0).prod(axis=-1)
    areas = (box[2:] - box[:2]).prod() + (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    return np.asarray(common / np.maximum(areas - common, 1e-9))
