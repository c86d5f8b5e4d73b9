"""Phrases that are not in an image: which to ask for, and whether they are recognised as absent.

For every image as many phrases of other images are asked for as it has phrases with a known place. Such a phrase shares
no word and no head noun with the image's captions, and its head noun is none of the things that the ground truth knows
to be there. Some of them are there all the same ("bike" where the captions say "bicycle"), so no figure can be perfect.
`without_synonyms` leaves out those whose head noun may name a thing of the captions ("person" and "man", too).

Hard ones are phrases of other images of the same type (people, clothing, ...; Flickr30k Entities names types) as a
phrase of the image.

The figures are those of SA-Co (facebookresearch/sam3, `scripts/eval/gold/README.md`), on pairs of image and phrase:

    il_mcc        Matthews' correlation of "the phrase is answered" and "the phrase is there"
    positive_f1   micro F1 of the answers' boxes for phrases that are there, averaged over IoU 0.50, 0.55 .. 0.95
    cgf1          their product

A phrase is answered with its regions if its presence is `ANSWERED` or more; if presence is not known, with those whose
score is. Both are also given for the rule of a user without presence: answer where the cosine is high enough, with the
threshold that gives the best correlation on these very pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.estimates import Floats, calibration_error, presence_area, weighted_estimate
from pipeline.evaluate.matching import Answer, Query
from pipeline.evaluate.metrics import is_right
from pipeline.presence_alone import drawn, words_of
from stages.contract.geometry import Box, box_iou
from stages.contract.records import Phrase, stable_id

ANSWERED: Final = 0.5  # the least presence, or score, of an answer; 0.5 as in SAM 3's evaluator

THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of `regions.min_presence` for which the figures say how much is kept."""

IOUS: Final = tuple(0.5 + 0.05 * step for step in range(10))


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """An image with its captions and phrases, and the phrases to look for in it.

    `queries` are the phrases that the ground truth knows, there or absent; `present` names things that it knows to be
    in the image; `easy` and `hard` are absent phrases of other images.
    """

    number: int
    sample_id: str
    captions: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    queries: tuple[Query, ...]
    present: Collection[str]
    easy: tuple[Phrase, ...] = ()
    hard: tuple[Phrase, ...] = ()

    @property
    def there(self) -> dict[str, str]:
        """Text -> type, of the phrases that the ground truth has a place for; "" if their type is unknown."""
        return {
            query.phrase: query.target.groups.get("type", "")
            for query in self.queries
            if query.target is not None and query.phrase is not None
        }


def absent_phrases(images: Sequence[AskedImage]) -> dict[int, tuple[list[Phrase], list[Phrase]]]:
    """Phrases of other images to ask each image for: easy ones and hard ones, by the image's number.

    The same images in the same order give the same phrases.
    """
    pool: list[tuple[int, Phrase]] = []
    by_type: dict[str, list[tuple[int, Phrase]]] = {}
    for image in images:
        first = {phrase.text: phrase for phrase in reversed(image.phrases)}
        for text, kind in image.there.items():
            if text in first:
                pool.append((image.number, first[text]))
                by_type.setdefault(kind, []).append(pool[-1])
    found = {}
    for image in images:
        rng = random.Random(stable_id(image.sample_id))  # noqa: S311  which phrases are asked for is no secret
        known = {word for caption in image.captions for word in words_of(caption)} | set(image.present)
        known |= {phrase.head for phrase in image.phrases}
        taken: set[str] = set()
        draw = partial(drawn, rng, own=image.number, known=known, taken=taken)
        easy = [draw(pool) for _ in image.there]
        hard = [draw(by_type[kind]) for kind in image.there.values() if kind]
        found[image.number] = [one for one in easy if one is not None], [one for one in hard if one is not None]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A phrase and an image."""

    image: int
    there: bool  # whether the phrase is in the image
    hard: bool  # whether it is one of the hard phrases, which are counted apart
    similarity: float  # cosine of both
    presence: float | None  # probability that the phrase is in the image; None if it is not known
    answers: tuple[Answer, ...]  # its regions
    boxes_xywh_px: tuple[Box, ...] = ()  # where it is
    doubtful: bool = False  # whether an absent phrase may name a thing that the captions call by another noun

    @property
    def answered(self) -> tuple[Answer, ...]:
        """The answers at `ANSWERED`."""
        if self.presence is not None:
            return self.answers if self.presence >= ANSWERED else ()
        return tuple(answer for answer in self.answers if answer.score >= ANSWERED)


def absent_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return all figures as plain values: {value, low, high, n}, or None where presence is not known.

    `pairs` are the counts; `presence_auc`, `similarity_auc`, `il_mcc`, `positive_f1`, `cgf1` and `ece`; `hard` and
    `without_synonyms` with both areas; `by_similarity`, the figures of the cosine's best threshold; `lost`, the share
    of phrases that are there and got no region; and `kept` with other values of `regions.min_presence`.
    """
    easy = [pair for pair in pairs if not pair.hard]
    there = [pair for pair in easy if pair.there]
    certain = [pair for pair in easy if not pair.doubtful]
    hard = [pair for pair in pairs if pair.hard]
    best = _best_threshold(easy)
    return {
        "pairs": {
            "there": len(there),
            "absent": len(easy) - len(there),
            "hard": len(hard),
            "without_synonyms": sum(not pair.there for pair in certain),
        },
        **_areas(easy),
        **_answered(easy, [pair.answered for pair in easy]),
        "ece": _calibration(easy),
        "lost": _estimated(partial(_weighted_mean, np.array([not pair.answers for pair in there], np.float64)), there),
        "hard": _areas([pair for pair in pairs if pair.hard or pair.there]) if hard else None,
        "without_synonyms": _areas(certain),
        "kept": _kept(easy),
        "by_similarity": {
            "threshold": best,
            **_answered(easy, [pair.answers if pair.similarity >= best else () for pair in easy]),
        },
    }


def _estimated(statistic: Callable[[Floats], float], pairs: Sequence[Pair]) -> dict[str, Any]:
    return weighted_estimate(statistic, np.array([pair.image for pair in pairs], np.int64)).plain()


def _weighted_mean(values: Floats, weights: Floats) -> float:
    return float(weights @ values / weights.sum())


def _kept(pairs: Sequence[Pair]) -> list[dict[str, float]] | None:
    presence = _presences(pairs)
    if presence is None:
        return None
    kinds = {"there": presence[_there(pairs)], "absent": presence[~_there(pairs)]}
    return [
        {"presence": least, **{kind: float((own >= least).mean()) if own.size else 0.0 for kind, own in kinds.items()}}
        for least in THRESHOLDS
    ]


def _areas(pairs: Sequence[Pair]) -> dict[str, Any]:
    there, presence = _there(pairs), _presences(pairs)
    similarity = np.array([pair.similarity for pair in pairs])
    return {
        "presence_auc": None if presence is None else _estimated(partial(presence_area, presence, there), pairs),
        "similarity_auc": _estimated(partial(presence_area, similarity, there), pairs),
    }


def _there(pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    return np.array([pair.there for pair in pairs], np.bool_)


def _presences(pairs: Sequence[Pair]) -> Floats | None:
    """The presence of all pairs; None if there is none, or if that of one is not known."""
    known = [pair.presence for pair in pairs if pair.presence is not None]
    return np.array(known) if known and len(known) == len(pairs) else None


def _answered(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    there, answered = _there(pairs), np.array([bool(own) for own in answers], np.bool_)
    both = list(zip(pairs, answers, strict=True))
    right = np.array([_right(pair, own) for pair, own in both]).reshape(-1, len(IOUS))
    sizes = np.array([len(own) + len(pair.boxes_xywh_px) if pair.there else 0 for pair, own in both], np.float64)
    mcc = partial(_mcc, there, answered)

    def f1(weights: Floats) -> float:
        total = float(weights @ sizes)
        return float((2 * (weights @ right) / total).mean()) if total > 0 else math.nan

    return {
        "il_mcc": _estimated(mcc, pairs),
        "positive_f1": _estimated(f1, pairs),
        "cgf1": _estimated(lambda weights: mcc(weights) * f1(weights), pairs),
    }


def _mcc(there: NDArray[np.bool_], answered: NDArray[np.bool_], weights: Floats) -> float:
    tp, fp = float(weights @ (there & answered)), float(weights @ (~there & answered))
    fn, tn = float(weights @ (there & ~answered)), float(weights @ (~there & ~answered))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product > 0 else 0.0


def _right(pair: Pair, answers: Sequence[Answer]) -> list[int]:
    """How many answers hit a box of their own, for each of `IOUS`; the best fitting pairs come first."""
    fits = sorted(
        (
            (box_iou(answer.box_xywh_px, box), a, b)
            for a, answer in enumerate(answers)
            for b, box in enumerate(pair.boxes_xywh_px)
            if pair.there
        ),
        reverse=True,
    )
    used_answers: set[int] = set()
    used_boxes: set[int] = set()
    hits = []
    for fit, answer, box in fits:
        if answer not in used_answers and box not in used_boxes:
            used_answers.add(answer)
            used_boxes.add(box)
            hits.append(fit)
    return [sum(fit >= least for fit in hits) for least in IOUS]


def _best_threshold(pairs: Sequence[Pair]) -> float:
    """The cosine from which on phrases are answered for the best correlation."""
    if not pairs:
        return 0.0
    similarity, there = np.array([pair.similarity for pair in pairs]), _there(pairs)
    ones = np.ones(len(pairs))
    tried = np.unique(np.quantile(similarity, np.linspace(0, 1, 101)))
    return float(max(tried, key=lambda least: _mcc(there, similarity >= least, ones)))


def _calibration(pairs: Sequence[Pair]) -> Mapping[str, Any]:
    """Calibration error of the score of all regions, of phrases that are there and of absent ones."""
    regions = [(pair, answer) for pair in pairs for answer in pair.answers]
    scores = np.array([answer.score for _, answer in regions], np.float64)
    right = np.array([is_right(answer.box_xywh_px, pair.boxes_xywh_px) for pair, answer in regions], np.bool_)
    return _estimated(partial(calibration_error, scores, right), [pair for pair, _ in regions])
