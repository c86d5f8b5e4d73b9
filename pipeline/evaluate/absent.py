"""Phrases that are not in an image: which to ask for, and whether they are found out.

For every image as many phrases of other images are asked for as it has phrases with a known place. Such a phrase shares
no word and no head noun with the image's captions, and its head noun is none of the things that the truth knows to be
there. Some of them are there all the same ("bike" where the captions say "bicycle"), so no figure can be perfect.
`without_synonyms` leaves out those whose head noun may name a thing of the captions ("person" and "man", too).

Hard ones are phrases of other images of the same type (people, clothing, ...; Flickr30k Entities tells types) as a
phrase of the image.

The figures are those of SA-Co (facebookresearch/sam3, `scripts/eval/gold/README.md`), on pairs of image and phrase:

    il_mcc        Matthews' correlation of "the phrase is answered" and "the phrase is there"
    positive_f1   micro F1 of the answers' boxes for phrases that are there, mean over IoU .50, .55 .. .95
    cgf1          their product

A phrase is answered with those of its regions whose presence is `ANSWERED` or more; where presence is not known, whose
score is. Both are also told for the rule that a user without presence has: answer where the cosine is high enough, with
the threshold that gives the best correlation on these very pairs.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.matching import Answer, Query
from pipeline.evaluate.metrics import IOU
from pipeline.evaluate.report import Estimate, weighted_estimate
from pipeline.evaluate.scores import Floats, calibration_error
from stages.contract.geometry import box_iou
from stages.contract.records import Phrase, stable_id

ANSWERED: Final = 0.5
"""The least presence, or score, of an answer; 0.5 as in SAM 3's evaluator."""

THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of `regions.min_presence` for which the figures say what is kept."""

IOUS: Final = tuple(0.5 + 0.05 * step for step in range(10))

_TRIES: Final = 200
"""Draws for one phrase; an image that shares words with nearly all others gets fewer phrases."""

_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """What an image is asked for.

    Attributes:
        number: Number of the image.
        sample_id: Its sample.
        captions: All its captions.
        phrases: All its phrases.
        there: Texts of those that the truth has a place for.
        types: Text -> type, for those whose type the truth tells.
        present: Names of things that the truth knows to be in the image.
    """

    number: int
    sample_id: str
    captions: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    there: tuple[str, ...]
    types: Mapping[str, str]
    present: frozenset[str]


def asked_image(
    row: Mapping[str, Any], phrases: Sequence[Phrase], queries: Sequence[Query], present: Collection[str]
) -> AskedImage:
    """What a row with its queries (`pipeline.evaluate.matching.queries_of`) is asked for."""
    there = [query for query in queries if query.target is not None and query.phrase is not None]
    types = {query.phrase: query.target.groups.get("type", "") for query in there if query.phrase and query.target}
    return AskedImage(
        number=row["id"],
        sample_id=row["sample_id"],
        captions=tuple(row["captions"]),
        phrases=tuple(phrases),
        there=tuple(dict.fromkeys(query.phrase or "" for query in there)),
        types={text: name for text, name in types.items() if name},
        present=frozenset(present),
    )


def absent_phrases(images: Sequence[AskedImage]) -> dict[int, tuple[list[Phrase], list[Phrase]]]:
    """Phrases of other images to ask each image for: easy ones and hard ones, by the image's number.

    The same images in the same order give the same phrases.
    """
    pool: list[tuple[int, Phrase, str]] = []
    for image in images:
        first = {phrase.text: phrase for phrase in reversed(image.phrases)}
        pool += [(image.number, first[text], image.types.get(text, "")) for text in image.there if text in first]
    by_type: dict[str, list[tuple[int, Phrase, str]]] = {}
    for entry in pool:
        by_type.setdefault(entry[2], []).append(entry)
    found = {}
    for image in images:
        rng = random.Random(stable_id(image.sample_id))  # noqa: S311  which phrases are asked for is no secret
        known = {word for caption in image.captions for word in _words(caption)} | set(image.present)
        known |= {phrase.head for phrase in image.phrases}
        taken: set[str] = set()
        easy = [_drawn(rng, pool, image.number, known, taken) for _ in image.there]
        hard = [
            _drawn(rng, by_type[image.types[text]], image.number, known, taken)
            for text in image.there
            if text in image.types
        ]
        found[image.number] = tuple([phrase for phrase in each if phrase is not None] for each in (easy, hard))
    return found  # type: ignore[return-value]


def _drawn(
    rng: random.Random, pool: Sequence[tuple[int, Phrase, str]], own: int, known: set[str], taken: set[str]
) -> Phrase | None:
    """A phrase of another image that shares no word with this one and was not taken yet."""
    for _ in range(_TRIES):
        image, phrase, _ = pool[rng.randrange(len(pool))]
        if image != own and phrase.text not in taken and known.isdisjoint({*_words(phrase.text), phrase.head}):
            taken.add(phrase.text)
            return phrase
    return None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A phrase and an image.

    Attributes:
        image: Number of the image.
        there: Whether the phrase is in it.
        hard: Whether it is one of the hard phrases, which are counted apart.
        doubtful: Whether an absent phrase may name a thing that the captions call by another noun.
        similarity: Cosine of both.
        presence: Probability that the phrase is in the image; None if nothing tells it.
        answers: Its regions.
        boxes_xywh_px: Where it is.
    """

    image: int
    there: bool
    hard: bool
    similarity: float
    presence: float | None
    answers: tuple[Answer, ...]
    boxes_xywh_px: tuple[tuple[float, float, float, float], ...] = ()
    doubtful: bool = False


def absent_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Plain values: `pairs`, `presence_auc`, `similarity_auc`, `il_mcc`, `positive_f1`, `cgf1`, `ece`, `hard` and
    `without_synonyms` with both areas, and `by_similarity` with the figures of the cosine's best threshold.

    `lost` is the share of phrases that are there and got no region, `kept` says what would be kept with other values of
    `regions.min_presence`. Figures are {value, low, high, n}, or None where
    nothing tells presence.
    """
    easy = [pair for pair in pairs if not pair.hard]
    hard = [pair for pair in pairs if pair.hard or pair.there]
    certain = [pair for pair in easy if not pair.doubtful]
    best = _best_threshold(easy)
    return {
        "pairs": {
            "there": sum(pair.there for pair in easy),
            "absent": sum(not pair.there for pair in easy),
            "hard": sum(pair.hard for pair in pairs),
            "without_synonyms": sum(not pair.there for pair in certain),
        },
        **_aucs(easy),
        **_answered(easy, [_told(pair) for pair in easy]),
        "ece": _plain(_calibration(easy)),
        "lost": _plain(_mean([pair for pair in easy if pair.there], lambda pair: not pair.answers)),
        "hard": _aucs(hard) if len(hard) > sum(pair.there for pair in easy) else None,
        "without_synonyms": _aucs(certain),
        "kept": _kept(easy),
        "by_similarity": {
            "threshold": best,
            **_answered(easy, [pair.answers if pair.similarity >= best else () for pair in easy]),
        },
    }


def _told(pair: Pair) -> tuple[Answer, ...]:
    if pair.presence is not None:
        return pair.answers if pair.presence >= ANSWERED else ()
    return tuple(answer for answer in pair.answers if answer.score >= ANSWERED)


def _kept(pairs: Sequence[Pair]) -> list[dict[str, float]] | None:
    """The shares of phrases that are there, and of absent ones, whose presence is at least each of `THRESHOLDS`."""
    if not pairs or any(pair.presence is None for pair in pairs):
        return None
    presence, there = np.array([pair.presence for pair in pairs], np.float64), _there(pairs)
    lines = []
    for least in THRESHOLDS:
        kept = presence >= least
        shares = {"there": kept[there], "absent": kept[~there]}
        lines.append(
            {"presence": least, **{name: float(each.mean()) if each.size else 0.0 for name, each in shares.items()}}
        )
    return lines


def _aucs(pairs: Sequence[Pair]) -> dict[str, Any]:
    there, images = _there(pairs), _images(pairs)
    similarity = np.array([pair.similarity for pair in pairs])
    figures: dict[str, Any] = {"presence_auc": None}
    if pairs and all(pair.presence is not None for pair in pairs):
        presence = np.array([pair.presence for pair in pairs], np.float64)
        figures["presence_auc"] = _plain(weighted_estimate(RocArea(presence, there), images))
    figures["similarity_auc"] = _plain(weighted_estimate(RocArea(similarity, there), images))
    return figures


class RocArea:
    """Area under the ROC curve for any weights (n,) of scores (n,): equal scores count half.

    NaN where the weights leave only phrases that are there, or none.
    """

    def __init__(self, scores: Floats, there: NDArray[np.bool_]) -> None:
        _, self._rank = np.unique(scores, return_inverse=True)
        self._there = there
        self._ranks = int(self._rank.max()) + 1 if scores.size else 0

    def __call__(self, weights: Floats) -> float:
        """The area."""
        there = np.bincount(self._rank, weights * self._there, self._ranks)
        absent = np.bincount(self._rank, weights * ~self._there, self._ranks)
        total = there.sum() * absent.sum()
        if total <= 0:
            return float("nan")
        below = np.cumsum(absent) - absent / 2
        return float(there @ below / total)


def _answered(pairs: Sequence[Pair], told: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """`il_mcc`, `positive_f1` and `cgf1` of the answers."""
    there, images = _there(pairs), _images(pairs)
    answered = np.array([bool(answers) for answers in told], np.bool_)
    right = np.array([_right(pair, answers) for pair, answers in zip(pairs, told, strict=True)]).reshape(-1, len(IOUS))
    sizes = np.array(
        [
            len(answers) + len(pair.boxes_xywh_px) if pair.there else 0
            for pair, answers in zip(pairs, told, strict=True)
        ],
        np.float64,
    )

    def mcc(weights: Floats) -> float:
        return _mcc(there, answered, weights)

    def f1(weights: Floats) -> float:
        total = float(weights @ sizes)
        return float((2 * (weights @ right) / total).mean()) if total > 0 else float("nan")

    figures = {"il_mcc": mcc, "positive_f1": f1, "cgf1": lambda weights: mcc(weights) * f1(weights)}
    return {name: _plain(weighted_estimate(figure, images)) for name, figure in figures.items()}


def _mcc(there: NDArray[np.bool_], answered: NDArray[np.bool_], weights: Floats) -> float:
    tp, fp = float(weights @ (there & answered)), float(weights @ (~there & answered))
    fn, tn = float(weights @ (there & ~answered)), float(weights @ (~there & ~answered))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product > 0 else 0.0


def _right(pair: Pair, answers: Sequence[Answer]) -> list[int]:
    """How many answers hit a box of their own, for each of `IOUS`; the best fitting pairs come first."""
    if not pair.there:
        return [0] * len(IOUS)
    fits = sorted(
        (
            (box_iou(answer.box_xywh_px, box), a, b)
            for a, answer in enumerate(answers)
            for b, box in enumerate(pair.boxes_xywh_px)
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


def _calibration(pairs: Sequence[Pair]) -> Estimate:
    """Calibration error of the score of all regions, of phrases that are there and of absent ones."""
    regions = [(pair, answer) for pair in pairs for answer in pair.answers]
    scores = np.array([answer.score for _, answer in regions], np.float64)
    right = np.array(
        [any(box_iou(answer.box_xywh_px, box) >= IOU for box in pair.boxes_xywh_px) for pair, answer in regions],
        np.bool_,
    )
    return weighted_estimate(partial(calibration_error, scores, right), _images([pair for pair, _ in regions]))


def _mean(pairs: Sequence[Pair], holds: Any) -> Estimate:
    values = np.array([bool(holds(pair)) for pair in pairs], np.float64)
    return weighted_estimate(lambda weights: float(weights @ values / weights.sum()), _images(pairs))


def _there(pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    return np.array([pair.there for pair in pairs], np.bool_)


def _images(pairs: Iterable[Pair]) -> NDArray[np.int64]:
    return np.array([pair.image for pair in pairs], np.int64)


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(estimate).items()
    }
