"""Boxes and points from the text of a phrase alone: how good is an answer without a look at the image?

Ground truth of other images says where in an image the objects of a head noun usually are.
Coordinates are shares of the image's sides, so the images' own sizes do not matter. Candidate boxes
have their corners on a grid of `EDGES` x `EDGES` places. A noun's box is the candidate that has IoU
>= 0.5 with the true boxes of most of its phrases. A noun's point is the cell of a grid of `CELLS` x
`CELLS` that lies in true boxes most often. Both are shrunk: each noun counts as seen `SHRINK` more
times, with the shares of all phrases. A noun that was seen fewer than `FEWEST` times gets the box
and the point of all phrases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box, xywh_to_xyxy, xyxy_to_xywh
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.scores.learned_box import overlaps
from phrasebox.stages.truth.ground_truth import TruthImage

EDGES: Final = 13  # places of an edge, 0 and 1 among them
CELLS: Final = 20
SHRINK: Final = (
    20.0  # on halves of 500 photographs box recall is 0.249 with 10, 0.252 with 20, 0.254 with 40 and 80
)
FEWEST: Final = 3
IOU: Final = 0.5
AMONG_EQUALS: Final = 0.01  # weight of the IoU itself beside whether it is 0.5 or more

BEHIND_THE_HEAD: Final = frozenset(
    {
        "of", "in", "on", "with", "at", "from", "for", "by", "to", "near", "behind", "under", "over",
        "and", "or", "that", "wearing", "holding", "who", "which", "about", "inside", "around",
        "across", "between", "without", "into",
    }
)  # fmt: skip
"""Words that begin what follows the head noun of a noun phrase."""


def head_of(phrase: str) -> str:
    """Return the head noun of a normalised phrase, without a parser: the last word before the first that follows it.

    >>> head_of("young man in a red hat")
    'man'
    """
    words = phrase.split()
    end = next((at for at, word in enumerate(words) if at and word in BEHIND_THE_HEAD), len(words))
    return words[end - 1] if words else ""


Extent = Literal["box", "merged"]
"""Whether a box is that of an object, or the one around all objects of a phrase."""


class UsualPlace(NamedTuple):
    """The usual place of a noun's objects, in shares of the image's sides.

    Attributes:
        box: Box of an object: x, y, width, height.
        merged: Box around all objects of a phrase.
        point: Point on an object: x, y.
    """

    box: Box
    merged: Box
    point: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOnly:
    """Usual places of objects, from the text alone.

    Attributes:
        of_head: Usual place of each frequent head noun.
        of_all: Usual place over all phrases.
    """

    of_head: Mapping[str, UsualPlace]
    of_all: UsualPlace

    def box_of(self, phrase: str, width: float, height: float, extent: Extent = "box") -> Box:
        """Return the box (x, y, width, height) of a phrase in an image of this size, in its pixels."""
        x, y, w, h = getattr(self.of_head.get(head_of(phrase), self.of_all), extent)
        return (x * width, y * height, w * width, h * height)

    def point_of(self, phrase: str, width: float, height: float) -> tuple[float, float]:
        """Return the point (x, y) of a phrase in an image of this size, in its pixels."""
        x, y = self.of_head.get(head_of(phrase), self.of_all).point
        return (x * width, y * height)


def fit_usual_places(images: Iterable[TruthImage]) -> TextOnly:
    """Fit usual places to the targets of images of known size, such as `GroundTruth.images.values()`.

    Raise InputError if no image of known size has a target.
    """
    by_head: dict[str, list[Floats]] = defaultdict(list)
    for image in images:
        sides = (image.width_px, image.height_px)
        for target in image.targets if all(sides) else ():
            boxes = np.array([xywh_to_xyxy(box) for box in target.boxes_xywh_px]) / (*sides, *sides)
            by_head[head_of(target.phrase)].append(boxes)
    if not by_head:
        raise InputError("no phrase with a known place in an image of known size to fit usual places to")
    frequent = {head: _count_hits(boxes) for head, boxes in by_head.items() if len(boxes) >= FEWEST}
    rare = [box for head, boxes in by_head.items() if head not in frequent for box in boxes]
    total = np.sum([*frequent.values(), _count_hits(rare)], axis=0)
    count = sum(map(len, by_head.values()))
    return TextOnly(
        of_head={head: _best_place(hits + SHRINK / count * total) for head, hits in frequent.items()},
        of_all=_best_place(total),
    )


def fit_halves(images: Mapping[str, TruthImage]) -> dict[str, TextOnly]:
    """Return file name -> usual places in the other half of the images; nothing if one half has no phrases."""
    half = {name: stable_id(name) % 2 for name in images}
    try:
        fits = [
            fit_usual_places(image for name, image in images.items() if half[name] != side)
            for side in (0, 1)
        ]
    except InputError:
        return {}
    return {name: fits[side] for name, side in half.items()}


_PAIRS: Final = np.column_stack(np.triu_indices(EDGES, 1)) / (EDGES - 1)
_BOXES: Final = np.array([(x0, y0, x1, y1) for x0, x1 in _PAIRS for y0, y1 in _PAIRS])  # (boxes, 4)
_POINTS: Final = (np.indices((CELLS, CELLS)).reshape(2, -1).T + 0.5) / CELLS  # (cells, 2)


def _count_hits(phrases: Sequence[Floats]) -> Floats:
    """Count the phrases that are hit by each box, by each box for all objects of a phrase, and by each point, (n,).

    phrases: The true boxes of each phrase (boxes, 4).
    """
    total = np.zeros(2 * len(_BOXES) + len(_POINTS))
    for true in phrases:
        low, high = np.split(true, 2, axis=1)
        any_box = np.max([_score_overlaps(box) for box in true], axis=0)
        merged = _score_overlaps(np.hstack([low.min(axis=0), high.max(axis=0)]))
        is_inside = ((low[:, None] <= _POINTS) & (high[:, None] > _POINTS)).all(axis=2)
        total += np.hstack([any_box, merged, is_inside.any(axis=0)])
    return total


def _score_overlaps(true: Floats) -> Floats:
    """Score `_BOXES` against a true box (4,): 1 for an IoU >= 0.5, plus a small part of the IoU, (boxes,)."""
    overlap = overlaps(true, _BOXES)
    return np.asarray(overlap >= IOU) + AMONG_EQUALS * overlap


def _best_place(sums: Floats) -> UsualPlace:
    *hits, points = np.split(sums, [len(_BOXES), 2 * len(_BOXES)])
    x, y = _POINTS[points.argmax()].tolist()
    box, merged = (xyxy_to_xywh(_BOXES[counts.argmax()].tolist()) for counts in hits)
    return UsualPlace(box=box, merged=merged, point=(x, y))
