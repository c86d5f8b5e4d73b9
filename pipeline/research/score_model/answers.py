"""Embeddings -> a number for each region, phrase, caption and image -> figures, and differences between two models.

Equal similarities are in random order, and every number is the expected value over these orders. A
model that gives all candidates the same similarity then scores like chance, and no figure depends
on the order of the input.

Shapes: Q queries, C candidates, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from scipy.stats import hypergeom

from phrasebox.pipeline.evaluate.estimates import Estimate, Estimates, mean_estimates, weighted_estimate
from phrasebox.pipeline.research.score_model.probe import Embeddings, Questions
from phrasebox.stages.contract.values import Bools, Floats, Floats32, Integers

CUTOFFS: Final = (1, 5, 10)  # the image or caption counts as found among so many first answers

_TEXTS_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Ranks:
    """Numbers of candidates, int64 (Q,), that decide the place of the first right answer of each query.

    Attributes:
        ahead: Wrong candidates that are more similar than the best right candidate.
        level: Wrong candidates that are exactly as similar as the best right candidate.
        right: Right candidates that are exactly as similar as the best one, 1 or more.
    """

    ahead: Integers
    level: Integers
    right: Integers

    def hits(self, k: int) -> Floats:
        """Return the probability that a right answer is among the first k, (Q,)."""
        ties = self.level + self.right
        places = np.clip(k - self.ahead, 0, ties)  # that ties share among the first k
        return np.asarray(hypergeom.sf(0, ties, self.right, places))


def rank_candidates(similarities: Floats32, right: Bools) -> Ranks:
    """Rank candidates by finite similarities (Q, C); `right` (Q, C) has one or more candidates in each row."""
    best = np.where(right, similarities, -np.inf).max(axis=1, keepdims=True)
    level = similarities == best
    return Ranks(
        ahead=((similarities > best) & ~right).sum(axis=1),
        level=(level & ~right).sum(axis=1),
        right=(level & right).sum(axis=1),
    )


@dataclass(slots=True)
class Answers:
    """The answers to questions of one kind.

    Attributes:
        images: Number of the image of each question.
        values: Kind of value -> value of each question, 0 .. 1.
        classes: Class of each region; empty for other questions.
    """

    images: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def add(self, images: Sequence[int], values: Mapping[str, Floats], classes: Sequence[str] = ()) -> None:
        """Add the answers to several questions."""
        self.images.extend(images)
        self.classes.extend(classes)
        for name, numbers in values.items():
            self.values.setdefault(name, []).extend(numbers.tolist())

    def rounded(self) -> Answers:
        """Return the same answers with six digits, as a file holds them."""
        values = {name: [round(value, 6) for value in numbers] for name, numbers in self.values.items()}
        return replace(self, values=values)


class Classification:
    """The classification of regions among all classes, by the embeddings (names, E) of the names; top-1 and top-5."""

    def __init__(self, names: Sequence[str], texts: Embeddings) -> None:
        self.names = names
        self._rows = {name: row for row, name in enumerate(names)}
        self._texts = texts
        self.answers = Answers()

    def add(self, number: int, classes: Sequence[str | None], regions: Embeddings) -> None:
        """Classify the regions (R, E) of an image. A region without a class is left out."""
        rows = [None if name is None else self._rows[name] for name in classes]
        labels = np.array([row for row in rows if row is not None], np.int64)
        if len(labels):
            candidates = regions[[row is not None for row in rows]]
            right = labels[:, None] == np.arange(len(self._texts))
            ranks = rank_candidates(candidates @ self._texts.T, right)
            self.answers.add(
                [number] * len(labels),
                {"top1": ranks.hits(1), "top5": ranks.hits(5)},
                [self.names[row] for row in labels],
            )


def find_phrases(
    answers: Answers,
    images: Sequence[int],
    questions: Sequence[Questions],
    regions: Sequence[Embeddings],
    texts: Embeddings,
) -> None:
    """Look for every phrase among the candidates of several images together, and add the answers.

    A candidate is right if the phrase's text names it, in any of the images.

    Args:
        answers: Gets recall_1, recall_5 and chance_1 of each phrase.
        images: Numbers of the images.
        questions: Questions of each image.
        regions: Embeddings of the regions of each image, (R, E).
        texts: Embeddings of the phrases of all images in order, (all phrases, E).
    """
    starts = np.cumsum([0, *(len(part.candidates) for part in questions)])
    places_by_text: dict[str, set[int]] = {}
    for part, start in zip(questions, starts, strict=False):
        for text, places in part.phrases:
            places_by_text.setdefault(text, set()).update(int(start) + place for place in places)
    queries = [
        (number, text) for number, part in zip(images, questions, strict=True) for text, _ in part.phrases
    ]
    if not queries:
        return
    right = _mask_of([places_by_text[text] for _, text in queries], starts[-1])
    candidates = np.concatenate(
        [rows[part.candidates] for rows, part in zip(regions, questions, strict=True)]
    )
    ranks = rank_candidates(texts @ candidates.T, right)
    values = {"recall_1": ranks.hits(1), "recall_5": ranks.hits(5)}
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

    An image finds its caption if any of its captions is among the first k, as in open_clip and the
    literature. Captions with the same text count once, and each image with that caption is right
    for it. Where all captions differ this is the usual definition.

    Args:
        images: Numbers of the N images.
        embeddings: Embeddings of the images, (N, E).
        captions: Captions of each image.
        texts: Caption -> row of `text_embeddings`.
        text_embeddings: Embeddings of the different captions, (T, E).

    Returns:
        `t2i` with a value for each caption of each image, `i2t` with one for each image that has a
        caption.
    """
    caption_rows = [{texts[caption] for caption in group} for group in captions]
    images_by_row: list[set[int]] = [set() for _ in range(len(text_embeddings))]
    for place, rows in enumerate(caption_rows):
        for row in rows:
            images_by_row[row].add(place)
    queries = [
        (number, texts[caption])
        for number, group in zip(images, captions, strict=True)
        for caption in group
    ]
    query_rows = np.array([row for _, row in queries], np.int64)
    by_text = _recalls(text_embeddings, embeddings, images_by_row)
    to_image = Answers()
    to_image.add(
        [number for number, _ in queries], {name: values[query_rows] for name, values in by_text.items()}
    )
    with_captions = [place for place, rows in enumerate(caption_rows) if rows]
    by_image = _recalls(
        embeddings[with_captions], text_embeddings, [caption_rows[place] for place in with_captions]
    )
    to_text = Answers()
    to_text.add([images[place] for place in with_captions], by_image)
    return {"t2i": to_image, "i2t": to_text}


def _recalls(queries: Embeddings, candidates: Embeddings, right: Sequence[set[int]]) -> dict[str, Floats]:
    """Return the recall of each query (Q, E) among the first answers, (Q,), for each of `CUTOFFS`."""
    parts: dict[str, list[Floats]] = {f"r{k}": [np.zeros(0)] for k in CUTOFFS}
    for start in range(0, len(queries), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        ranks = rank_candidates(queries[part] @ candidates.T, _mask_of(right[part], len(candidates)))
        for k in CUTOFFS:
            parts[f"r{k}"].append(ranks.hits(k))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _mask_of(places: Sequence[set[int]], count: int) -> Bools:
    marks = np.zeros((len(places), count), np.bool_)
    for row, columns in enumerate(places):
        marks[row, list(columns)] = True
    return marks


def figures_of(answers: Answers) -> Estimates:
    """Return the mean of every kind of value.

    Regions also have `mean_per_class`, the mean over classes of their top-1. Its n counts classes.
    """
    images = np.array(answers.images, np.int64)
    values = {name: np.array(numbers, np.float64) for name, numbers in answers.values.items()}
    figures = dict(zip(values, mean_estimates(list(values.values()), images), strict=True))
    if answers.classes:
        figures["mean_per_class"] = _over_classes(answers, images, values["top1"])
    return figures


def differences_of(answers: Answers, reference: Answers) -> Estimates:
    """Return the paired differences from another model's figures. Raise ValueError if the questions differ."""
    questions = [(part.images, part.classes, set(part.values)) for part in (answers, reference)]
    if questions[0] != questions[1]:
        raise ValueError("expected answers to the same questions")
    differences = {
        name: [value - other for value, other in zip(values, reference.values[name], strict=True)]
        for name, values in answers.values.items()
        if name != "chance_1"
    }
    return figures_of(replace(answers, values=differences))


def _over_classes(answers: Answers, images: Integers, hits: Floats) -> Estimate:
    names, owner = np.unique(answers.classes, return_inverse=True)

    def mean(weights: Floats) -> float:
        # A resample may lack a class: the mean is then over the others.
        boxes = np.bincount(owner, weights, len(names))
        right = np.bincount(owner, weights * hits, len(names))
        is_drawn = boxes > 0
        return float((right[is_drawn] / boxes[is_drawn]).mean()) if is_drawn.any() else math.nan

    return replace(weighted_estimate(mean, images), n=len(names))
