"""Embeddings -> a number for each region, phrase, caption and image -> figures, and differences between two models.

Equal similarities are in random order, and every number is the expected one over these orders. A model that gives all
candidates the same similarity then scores like chance, and no figure depends on the order of the input.

Shapes: Q queries, C candidates, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from pipeline.evaluate.estimates import Estimate, Floats, mean_estimates, weighted_estimate
from pipeline.evaluate.probe import Embedded, Embeddings, Questions

WAYS: Final = ("roi", "mask", "crop")  # the ways to embed a region, see `pipeline.evaluate.probe`
RETRIEVED: Final = (1, 5, 10)  # the image or caption counts as found among so many first answers

_TEXTS_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Ranks:
    """Numbers of candidates, int64 (Q,), that decide the place of the first right answer of each query.

    Wrong ones that are more similar than the best right one (`ahead`) and exactly as similar (`level`), and `right`
    ones that are exactly as similar, 1 or more.
    """

    ahead: NDArray[np.int64]
    level: NDArray[np.int64]
    right: NDArray[np.int64]

    def hits(self, k: int) -> Floats:
        """Probability that a right answer is among the first k, (Q,)."""
        drawn = np.maximum(k - self.ahead, 0)  # of those that are exactly as similar
        return np.asarray(
            hypergeom.sf(0, self.level + self.right, self.right, np.minimum(drawn, self.level + self.right))
        )


def ranks(similarities: NDArray[np.float32], right: NDArray[np.bool_]) -> Ranks:
    """Rank candidates: finite similarities (Q, C), and the right candidates (Q, C), one or more in each row."""
    best = np.where(right, similarities, -np.inf).max(axis=1, keepdims=True)
    level = similarities == best
    return Ranks(
        ahead=((similarities > best) & ~right).sum(axis=1),
        level=(level & ~right).sum(axis=1),
        right=(level & right).sum(axis=1),
    )


@dataclass(slots=True)
class Answers:
    """The answers to questions of one kind."""

    images: list[int] = field(default_factory=list)  # number of the image of each
    values: dict[str, list[float]] = field(default_factory=dict)  # kind of value -> one for each question, 0 .. 1
    classes: list[str] = field(default_factory=list)  # of each region; empty for other questions

    def add(self, images: Sequence[int], values: Mapping[str, Floats], classes: Sequence[str] = ()) -> None:
        """Note several questions."""
        self.images.extend(images)
        self.classes.extend(classes)
        for name, numbers in values.items():
            self.values.setdefault(name, []).extend(numbers.tolist())


class Classification:
    """Regions are named among all classes, by the embeddings (names, E) of their names; top-1 and top-5."""

    def __init__(self, names: Sequence[str], texts: Embeddings) -> None:
        self.names = names
        self._rows = {name: row for row, name in enumerate(names)}
        self._texts = texts
        self.answers = {way: Answers() for way in WAYS}

    def add(self, number: int, classes: Sequence[str | None], embedded: Embedded) -> None:
        """Note the regions of an image. Those without a class, or without a mask, are left out."""
        rows = np.array([-1 if name is None else self._rows[name] for name in classes], np.int64)
        for way in WAYS:
            regions: Embeddings | None = getattr(embedded, way)
            if regions is None or not len(rows):
                continue
            chosen = (rows >= 0) & (regions != 0).any(axis=1)
            if chosen.any():
                right = rows[chosen][:, None] == np.arange(len(self._texts))
                found = ranks(regions[chosen] @ self._texts.T, right)
                named = [self.names[row] for row in rows[chosen]]
                self.answers[way].add([number] * len(named), {"top1": found.hits(1), "top5": found.hits(5)}, named)


def find_phrases(
    answers: Answers,
    images: Sequence[int],
    asked: Sequence[Questions],
    regions: Sequence[Embeddings],
    texts: Embeddings,
) -> None:
    """Look for every phrase among the candidates of all given images together, and note the ranks of the right ones.

    Right is every candidate that the same text means, in whichever of the images.

    Args:
        answers: Gets recall_1, recall_5 and chance_1 of each phrase.
        images, asked: Numbers of the images, and their questions.
        regions, texts: Embeddings of their regions, (R, E) each, and of their phrases in order, (all phrases, E).
    """
    starts = np.cumsum([0, *(len(each.candidates) for each in asked)])
    meant: dict[str, set[int]] = {}
    for each, start in zip(asked, starts, strict=False):
        for text, places in each.phrases:
            meant.setdefault(text, set()).update(int(start) + place for place in places)
    queries = [(number, text) for number, each in zip(images, asked, strict=True) for text, _ in each.phrases]
    if not queries:
        return
    right = _marked([meant[text] for _, text in queries], starts[-1])
    candidates = np.concatenate([own[each.candidates] for own, each in zip(regions, asked, strict=True)])
    found = ranks(texts @ candidates.T, right)
    values = {"recall_1": found.hits(1), "recall_5": found.hits(5)}
    # The first of all candidates in random order is right with this probability.
    answers.add([number for number, _ in queries], {**values, "chance_1": right.mean(axis=1)})


def retrieve(
    images: Sequence[int],
    embeddings: Embeddings,
    captions: Sequence[Sequence[str]],
    texts: Mapping[str, int],
    text_embeddings: Embeddings,
) -> dict[str, Answers]:
    """Find the image of every caption among all images, and a caption of every image among all captions.

    An image is found if any of its captions is among the first k, as open_clip and the literature have it. Captions
    that are the same text count once, and any image that has a text is right for it: where all captions differ this is
    the usual definition.

    Args:
        images, embeddings, captions: Numbers of the N images, (N, E), and the captions of each.
        texts, text_embeddings: Caption -> row of (T, E).

    Returns:
        `t2i` with a value for each caption of each image, `i2t` with one for each image that has a caption.
    """
    own = [{texts[caption] for caption in each} for each in captions]
    owners: list[set[int]] = [set() for _ in range(len(text_embeddings))]
    for place, rows in enumerate(own):
        for row in rows:
            owners[row].add(place)
    asked = [(number, texts[caption]) for number, each in zip(images, captions, strict=True) for caption in each]
    asked_rows = np.array([row for _, row in asked], np.int64)
    to_image, to_text = Answers(), Answers()
    by_text = _retrieved(text_embeddings, embeddings, owners)
    to_image.add([number for number, _ in asked], {name: values[asked_rows] for name, values in by_text.items()})
    captioned = [place for place, rows in enumerate(own) if rows]
    by_image = _retrieved(embeddings[captioned], text_embeddings, [own[place] for place in captioned])
    to_text.add([images[place] for place in captioned], by_image)
    return {"t2i": to_image, "i2t": to_text}


def _retrieved(queries: Embeddings, candidates: Embeddings, right: Sequence[set[int]]) -> dict[str, Floats]:
    parts: dict[str, list[Floats]] = {f"r{k}": [np.zeros(0)] for k in RETRIEVED}
    for start in range(0, len(queries), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        found = ranks(queries[part] @ candidates.T, _marked(right[part], len(candidates)))
        for k in RETRIEVED:
            parts[f"r{k}"].append(found.hits(k))
    return {name: np.concatenate(each) for name, each in parts.items()}


def _marked(places: Sequence[set[int]], count: int) -> NDArray[np.bool_]:
    marks = np.zeros((len(places), count), np.bool_)
    for row, own in enumerate(places):
        marks[row, list(own)] = True
    return marks


def figures_of(answers: Answers) -> dict[str, Any]:
    """Return the mean of every kind of value, {value, low, high, n} each, and `n`, the questions.

    For regions also `mean_per_class`, the mean over classes of their top-1; its n counts classes.
    """
    images = np.array(answers.images, np.int64)
    values = {name: np.array(numbers, np.float64) for name, numbers in answers.values.items()}
    found = dict(zip(values, mean_estimates(list(values.values()), images), strict=True))
    if answers.classes:
        found["mean_per_class"] = _over_classes(answers, images, values["top1"])
    return {**{name: estimate.plain() for name, estimate in found.items()}, "n": len(images)}


def differences_of(answers: Answers, theirs: Answers) -> dict[str, Any]:
    """Return the paired differences from another model's figures. Raise ValueError if it answered other questions."""
    ours, others = ((each.images, each.classes, set(each.values)) for each in (answers, theirs))
    if ours != others:
        raise ValueError("expected answers to the same questions")
    less = {
        name: (np.array(own, np.float64) - np.array(theirs.values[name], np.float64)).tolist()
        for name, own in answers.values.items()
        if name != "chance_1"
    }
    return figures_of(replace(answers, values=less))


def by_class(answers: Answers) -> dict[str, dict[str, Any]]:
    """Class -> number of regions `n` and the share `top1` that is named right, in the order of the names."""
    totals: dict[str, list[float]] = {}
    for name, hit in zip(answers.classes, answers.values.get("top1", ()), strict=True):
        totals.setdefault(name, []).append(hit)
    return {name: {"n": len(totals[name]), "top1": float(np.mean(totals[name]))} for name in sorted(totals)}


def _over_classes(answers: Answers, images: NDArray[np.int64], hits: Floats) -> Estimate:
    names, owner = np.unique(answers.classes, return_inverse=True)

    def mean(weights: Floats) -> float:
        # A resample may lack a class: the mean is then over the others.
        boxes = np.bincount(owner, weights, len(names))
        right = np.bincount(owner, weights * hits, len(names))
        there = boxes > 0
        return float((right[there] / boxes[there]).mean()) if there.any() else math.nan

    return replace(weighted_estimate(mean, images), n=len(names))


def stored(answers: Answers) -> dict[str, Any]:
    """Answers as plain values with six digits, for a file."""
    values = {name: [round(value, 6) for value in numbers] for name, numbers in answers.values.items()}
    return {"images": answers.images, "values": values, "classes": answers.classes}


def restored(values: Mapping[str, Any]) -> Answers:
    """Return the reverse of `stored`. Raise TypeError, ValueError, AttributeError or KeyError for anything else."""
    answers = Answers(
        images=[int(image) for image in values["images"]],
        values={str(name): [float(value) for value in numbers] for name, numbers in values["values"].items()},
        classes=[str(name) for name in values["classes"]],
    )
    if any(len(numbers) != len(answers.images) for numbers in answers.values.values()):
        raise ValueError("expected as many values as images")
    return answers
