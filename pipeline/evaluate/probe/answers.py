"""Embeddings -> a number for each region, phrase, caption and image: what figures are the means of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.probe.embed import Embedded, Embeddings
from pipeline.evaluate.probe.questions import Questions
from pipeline.evaluate.probe.ranks import chance, ranks

WAYS: Final = ("roi", "mask", "crop")
"""How a region is embedded, see `pipeline.evaluate.probe.embed`."""

RETRIEVED: Final = (1, 5, 10)
"""The first so many answers of a retrieval that are looked at."""

_TEXTS_AT_ONCE: Final = 1024


@dataclass(slots=True)
class Answers:
    """What came out for each question of one kind.

    Attributes:
        images: Number of the image of each.
        values: Kind of value -> one for each question, 0 .. 1.
        classes: The class of each region; empty for other questions.
    """

    images: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def add(
        self, images: Sequence[int], values: Mapping[str, NDArray[np.float64]], classes: Sequence[str] = ()
    ) -> None:
        """Note several questions."""
        self.images.extend(images)
        self.classes.extend(classes)
        for name, numbers in values.items():
            self.values.setdefault(name, []).extend(numbers.tolist())


class Classification:
    """Regions are named among all classes; top-1 and top-5.

    Args:
        names: Of the classes, each once.
        texts: Their embeddings, (names, E).
    """

    def __init__(self, names: Sequence[str], texts: Embeddings) -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        self.names = len(names)
        self._texts = texts
        self.answers: dict[str, Answers] = {way: Answers() for way in WAYS}

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
                named = [str(name) for name, is_chosen in zip(classes, chosen, strict=True) if is_chosen]
                values = {"top1": found.hits(1), "top5": found.hits(5)}
                self.answers[way].add([number] * len(named), values, named)


def find_phrases(
    answers: Answers,
    images: Sequence[int],
    asked: Sequence[Questions],
    regions: Sequence[Embeddings],
    texts: Embeddings,
) -> None:
    """Look for every phrase among the candidates of all given images together, and note where the right ones stand.

    Right is every candidate that the same text means, in whichever of the images.

    Args:
        answers: Gets recall_1, recall_5, mrr and chance_1 of each phrase.
        images: Numbers of the images.
        asked: Their questions.
        regions: Embeddings of their regions, (R, E) each.
        texts: Embeddings of their phrases, in order, (all phrases, E).
    """
    counts = [len(each.candidates) for each in asked]
    starts = np.cumsum([0, *counts])
    meant: dict[str, set[int]] = {}
    for each, start in zip(asked, starts, strict=False):
        for text, places in each.phrases:
            meant.setdefault(text, set()).update(int(start) + place for place in places)
    queries = [(number, text) for number, each in zip(images, asked, strict=True) for text, _ in each.phrases]
    if not queries:
        return
    right = np.zeros((len(queries), starts[-1]), np.bool_)
    for row, (_, text) in enumerate(queries):
        right[row, list(meant[text])] = True
    candidates = np.concatenate([own[each.candidates] for own, each in zip(regions, asked, strict=True)])
    found = ranks(texts @ candidates.T, right)
    values = {
        "recall_1": found.hits(1),
        "recall_5": found.hits(5),
        "mrr": found.reciprocal(),
        "chance_1": np.array([chance(int(row.sum()), len(row)) for row in right]),
    }
    answers.add([number for number, _ in queries], values)


def retrieve(
    images: Sequence[int],
    embeddings: Embeddings,
    captions: Sequence[Sequence[str]],
    texts: Mapping[str, int],
    text_embeddings: Embeddings,
) -> dict[str, Answers]:
    """Find the image of every caption among all images, and a caption of every image among all captions.

    An image is found if any of its captions is among the first k, as open_clip and the literature have it.
    Captions that are the same text count once, and any image that has a text is right for it: where all captions differ
    this is the usual definition.

    Args:
        images: Numbers of the N images.
        embeddings: (N, E).
        captions: Of each image.
        texts: Caption -> row of `text_embeddings`.
        text_embeddings: (T, E).

    Returns:
        `t2i` with a value for each caption of each image, `i2t` with one for each image that has a caption.
    """
    own: list[set[int]] = [{texts[caption] for caption in each} for each in captions]
    owners: list[list[int]] = [[] for _ in range(len(text_embeddings))]
    for place, rows in enumerate(own):
        for row in rows:
            owners[row].append(place)
    by_text: dict[str, NDArray[np.float64]] = {f"r{k}": np.empty(len(text_embeddings)) for k in RETRIEVED}
    for start in range(0, len(text_embeddings), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        right = np.zeros((len(text_embeddings[part]), len(images)), np.bool_)
        for row, places in enumerate(owners[part]):
            right[row, places] = True
        found = ranks(text_embeddings[part] @ embeddings.T, right)
        for k in RETRIEVED:
            by_text[f"r{k}"][part] = found.hits(k)
    to_image, to_text = Answers(), Answers()
    asked = [(number, texts[caption]) for number, each in zip(images, captions, strict=True) for caption in each]
    asked_rows = np.array([row for _, row in asked], np.int64)
    to_image.add([number for number, _ in asked], {name: values[asked_rows] for name, values in by_text.items()})
    places = [place for place, mine in enumerate(own) if mine]
    for start in range(0, len(places), _TEXTS_AT_ONCE):
        chosen = places[start : start + _TEXTS_AT_ONCE]
        right = np.zeros((len(chosen), len(text_embeddings)), np.bool_)
        for row, place in enumerate(chosen):
            right[row, list(own[place])] = True
        found = ranks(embeddings[chosen] @ text_embeddings.T, right)
        to_text.add([images[place] for place in chosen], {f"r{k}": found.hits(k) for k in RETRIEVED})
    return {"t2i": to_image, "i2t": to_text}
