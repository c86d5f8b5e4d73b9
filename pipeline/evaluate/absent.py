"""Phrases that are not in an image: which to ask for, and whether they are recognised as absent.

For every image as many phrases of other images are asked for as it has phrases with a known place. Such a phrase shares
no word and no head noun with the image's captions, and its head noun is none of the things that the ground truth knows
to be there. Some of them are there all the same ("bike" where the captions say "bicycle"), so no figure can be perfect.
`without_synonyms` leaves out those whose head noun may name a thing of the captions ("person" and "man", too).

Besides these random ones there are four harder kinds, which count in no other figure (POPE, EMNLP 2023, has `random`
and `adversarial`):

    same_type     of the same type (people, clothing, ...; Flickr30k Entities names types) as a phrase of the image
    adversarial   with the head nouns that share most images with those of the image and are not among them. Clothing
                  and parts of the body, which captions leave out where they are, are none of them
    attribute     a phrase of the image in another colour, which no caption says: compared with coloured phrases alone
    said          a phrase that a caption says, and of which the ground truth says that it is false

Four figures are asked how well they separate: the `presence` of the phrase by itself; `presence_of_group`, as a run
shares it among the texts of a thing, which an absent phrase has from its own image; the cosine; and its z-score over
the images.

The other figures are those of SA-Co (facebookresearch/sam3, `sam3/eval/cgf1_eval.py`), on pairs of image and phrase:

    il_mcc        Matthews' correlation of "the phrase is answered" and "the phrase is there"
    positive_f1   micro F1 of the answers' boxes for phrases that are there, averaged over IoU 0.50, 0.55 .. 0.95
    cgf1          their product

`saco` is that evaluator's own rule: regions with a score of `ANSWERED` or more are the answer. For a presence all
regions of a phrase are, if it is `ANSWERED` or more; for the cosine and its z-score, which know nothing of presence, if
it reaches the threshold with the best correlation on these very pairs.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.estimates import (
    Floats,
    debiased_calibration_error,
    mean_estimates,
    of_totals,
    presence_area,
    weighted_estimate,
)
from pipeline.evaluate.matching import Answer, Query
from pipeline.evaluate.metrics import is_right
from pipeline.presence_alone import drawn, may_be, words_of
from stages.contract.geometry import Box, box_iou
from stages.contract.records import Phrase, stable_id
from stages.regions.groups import linked, things

ANSWERED: Final = 0.5  # the least presence, or score, of an answer; 0.5 as in SAM 3's evaluator

THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of `regions.min_presence` for which the figures say how much is kept."""

IOUS: Final = tuple(0.5 + 0.05 * step for step in range(10))

WAYS: Final = ("presence", "presence_of_group", "z_score", "similarity")
"""What separates phrases that are there from absent ones: fields of `Pair`."""

HARDER: Final = ("same_type", "adversarial", "attribute", "said")

COLOURS: Final = ("black", "white", "red", "blue", "green", "yellow", "orange", "pink", "purple", "brown")

LEFT_OUT: Final = ("clothing", "body")  # sections of things.txt


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """An image with its captions and phrases, and the phrases to look for in it.

    `queries` are the phrases that the ground truth knows, there or absent; `present` names things that it knows to be
    in the image; `absent` are phrases that are not there, by kind: "random" and the first of `HARDER`; `voters` are
    other texts of what an absent phrase names in its own image.
    """

    number: int
    sample_id: str
    captions: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    queries: tuple[Query, ...]
    present: Collection[str]
    absent: Mapping[str, tuple[Phrase, ...]] = field(default_factory=dict)
    voters: Mapping[str, tuple[Phrase, ...]] = field(default_factory=dict)

    @property
    def there(self) -> dict[str, str]:
        """Text -> type, of the phrases that the ground truth has a place for; "" if their type is unknown."""
        return {
            query.phrase: query.target.groups.get("type", "")
            for query in self.queries
            if query.target is not None and query.phrase is not None
        }

    @property
    def asked(self) -> tuple[Phrase, ...]:
        """All phrases to look for, those of the image first."""
        return (*self.phrases, *(each for kind in (self.absent, self.voters) for own in kind.values() for each in own))


def absent_phrases(images: Sequence[AskedImage]) -> dict[int, AskedImage]:
    """The images with the phrases that are not in them, by the image's number.

    The same images in the same order give the same phrases, in every process.
    """
    pool: list[tuple[int, Phrase]] = []
    by_type: dict[str, list[tuple[int, Phrase]]] = {}
    by_head: dict[str, list[tuple[int, Phrase]]] = {}
    same: dict[Phrase, list[Phrase]] = {}
    together: dict[str, Counter[str]] = {}
    for image in images:
        first = {phrase.text: phrase for phrase in reversed(image.phrases)}
        numbers = dict(zip(image.phrases, linked(image.captions, image.phrases), strict=True))
        for text, kind in image.there.items():
            if text in first:
                pool.append((image.number, first[text]))
                by_type.setdefault(kind, []).append(pool[-1])
                by_head.setdefault(first[text].head, []).append(pool[-1])
                same[first[text]] = [each for each in first.values() if numbers[each] == numbers[first[text]]]
        for head, other in permutations(dict.fromkeys(phrase.head for phrase in image.phrases), 2):
            together.setdefault(head, Counter())[other] += 1
    found = {}
    for image in images:
        rng = random.Random(stable_id(image.sample_id))  # noqa: S311  which phrases are asked for is no secret
        known = {word for caption in image.captions for word in words_of(caption)} | set(image.present)
        heads = {phrase.head for phrase in image.phrases}
        draw, taken = partial(drawn, rng, own=image.number, known=known | heads), [set[str](), set[str](), set[str]()]
        near: Counter[str] = sum((together.get(head, Counter()) for head in heads), Counter())
        ranked = sorted(near, key=lambda head: (-near[head], head))  # each process orders the set `heads` differently
        nearest = [head for head in ranked if head in by_head and _is_told(head, heads)]
        absent = {
            "random": [draw(pool, taken=taken[0]) for _ in image.there],
            "same_type": [draw(by_type[kind], taken=taken[1]) for kind in image.there.values() if kind],
            "adversarial": [draw(by_head[head], taken=taken[2]) for head in nearest[: len(image.there)]],
            "attribute": [_recoloured(phrase, known, rng) for phrase in image.phrases if phrase.text in image.there],
        }
        chosen = {kind: tuple({each.text: each for each in own if each}.values()) for kind, own in absent.items()}
        voters = {
            one.text: tuple(each for each in same[one] if known.isdisjoint(words_of(each.text)) and each != one)
            for kind in ("random", "same_type", "adversarial")
            for one in chosen[kind]
        }
        found[image.number] = replace(image, absent=chosen, voters=voters)
    return found


def _is_told(head: str, heads: Collection[str]) -> bool:
    """Whether captions that name `heads`, and not this one, say that it is not there, as far as they do."""
    kinds = {path[0] for path in things().paths.get(head, ())}
    return kinds.isdisjoint(LEFT_OUT) and not any(may_be(head, other) or may_be(other, head) for other in heads)


def _recoloured(phrase: Phrase, known: Collection[str], rng: random.Random) -> Phrase | None:
    """A phrase with another colour, None if it has none."""
    words, others = phrase.text.split(), [colour for colour in COLOURS if colour not in known]
    place = next((at for at, word in enumerate(words) if word in COLOURS), None)
    if place is None or not others:
        return None
    words[place] = rng.choice(others)
    return replace(phrase, text=" ".join(words))


def is_coloured(phrase: str) -> bool:
    """Return whether a phrase names a colour that `attribute` exchanges."""
    return not set(COLOURS).isdisjoint(phrase.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A phrase and an image."""

    image: int
    text: str
    kind: str  # "there", "random", or one of `HARDER`
    similarity: float  # cosine of both
    z_score: float = math.nan  # deviations of the cosine from the phrase's mean over all images, known after the last
    presence: float | None  # probability that the phrase is in the image; None if it is not known
    presence_of_group: float | None  # the same, as a run shares it
    answers: tuple[Answer, ...] = ()  # its regions, whatever its presence; only of "there" and "random"
    kept: bool = True  # whether a run would write them: presence reaches `regions.min_presence`
    boxes_xywh_px: tuple[Box, ...] = ()  # where it is
    doubtful: bool = False  # whether an absent phrase may name a thing that the captions call by another noun

    @property
    def there(self) -> bool:
        """Whether the phrase is in the image."""
        return self.kind == "there"


def absent_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return all figures as plain values: {value, low, high, n}, or None where presence is not known.

    `pairs` are the counts by kind; `by` has for each of `WAYS` the areas `auc`, `auc_without_synonyms` and of `HARDER`,
    then `threshold`, `il_mcc`, `positive_f1` and `cgf1`; `saco` has the last three by the evaluator's rule; `ece` and
    `ece_there` are the calibration errors of all regions and of those of phrases that are there; `lost` is the share of
    phrases that are there and got no region; and `kept` says what other values of `regions.min_presence` keep.
    """
    asked = [pair for pair in pairs if pair.kind in ("there", "random")]
    there = [pair for pair in asked if pair.there]
    compared = {
        "auc": asked,
        "auc_without_synonyms": [pair for pair in asked if not pair.doubtful],
        **{f"auc_{kind}": [pair for pair in pairs if pair.there or pair.kind == kind] for kind in HARDER},
    }
    compared["auc_attribute"] = [pair for pair in compared["auc_attribute"] if is_coloured(pair.text)]
    by: dict[str, Any] = {}
    for way in WAYS:
        values = _values(asked, way)
        if values is None:
            by[way] = None
            continue
        least = ANSWERED if way.startswith("presence") else _best_threshold(values, _there(asked))
        answers = [pair.answers if value >= least else () for pair, value in zip(asked, values, strict=True)]
        areas = {name: _area(own, way) for name, own in compared.items()}
        by[way] = {**areas, "threshold": least, **_answered(asked, answers)}
    lost = np.array([not (pair.kept and pair.answers) for pair in there], np.float64)
    owners = np.array([pair.image for pair in there], np.int64)
    return {
        "pairs": {
            **{kind: sum(pair.kind == kind for pair in pairs) for kind in ("there", "random", *HARDER)},
            "without_synonyms": sum(not pair.there for pair in compared["auc_without_synonyms"]),
        },
        "by": by,
        "saco": _answered(asked, [tuple(one for one in pair.answers if one.score >= ANSWERED) for pair in asked]),
        "ece": _calibration(asked),
        "ece_there": _calibration(there),
        "lost": mean_estimates([lost], owners)[0].plain(),
        "kept": _kept(asked),
    }


def _kept(pairs: Sequence[Pair]) -> list[dict[str, float]] | None:
    presence = _values(pairs, "presence_of_group")
    if presence is None:
        return None
    kinds = {"there": presence[_there(pairs)], "absent": presence[~_there(pairs)]}
    return [
        {"presence": least, **{kind: float((own >= least).mean()) if own.size else 0.0 for kind, own in kinds.items()}}
        for least in THRESHOLDS
    ]


def _area(pairs: Sequence[Pair], way: str) -> dict[str, Any] | None:
    values, there = _values(pairs, way), _there(pairs)
    if values is None or there.all() or not there.any():
        return None
    return weighted_estimate(presence_area(values, there), np.array([pair.image for pair in pairs], np.int64)).plain()


def _there(pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    return np.array([pair.there for pair in pairs], np.bool_)


def _values(pairs: Sequence[Pair], way: str) -> Floats | None:
    """The values of all pairs by a way; None if there is none, or if that of one is not known."""
    known = [value for pair in pairs if (value := getattr(pair, way)) is not None]
    return np.array(known, np.float64) if known and len(known) == len(pairs) else None


def _answered(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    rows = [
        [pair.there and bool(own), pair.there, bool(own), 1, pair.there * (len(own) + len(pair.boxes_xywh_px)), *hits]
        for pair, own in zip(pairs, answers, strict=True)
        for hits in [_right(pair, own)]
    ]
    images, owner = np.unique([pair.image for pair in pairs], return_inverse=True)
    sums = np.zeros((images.size, 5 + len(IOUS)))  # of an image: whole images are drawn
    np.add.at(sums, owner, np.array(rows, np.float64).reshape(-1, sums.shape[1]))

    def f1(totals: Floats) -> float:
        return float((2 * totals[5:] / totals[4]).mean()) if totals[4] > 0 else math.nan

    figures = {"il_mcc": _mcc, "positive_f1": f1, "cgf1": lambda totals: _mcc(totals) * f1(totals)}
    numbers = np.arange(images.size)
    found = {name: weighted_estimate(partial(of_totals, figure, sums), numbers) for name, figure in figures.items()}
    return {name: replace(estimate, n=len(pairs)).plain() for name, estimate in found.items()}


def _mcc(totals: Floats) -> float:
    """Matthews' correlation, from how many are answered and there, are there, are answered, and are at all."""
    both, there, answered, n = totals[:4].tolist()
    product = answered * there * (n - there) * (n - answered)
    return (both * n - there * answered) / math.sqrt(product) if product > 0 else 0.0


def _right(pair: Pair, answers: Sequence[Answer]) -> list[int]:
    """How many answers hit a box of their own, for each of `IOUS`, in the assignment with the highest sum of IoU."""
    if not (answers and pair.boxes_xywh_px):
        return [0] * len(IOUS)
    fits = np.array([[box_iou(answer.box_xywh_px, box) for box in pair.boxes_xywh_px] for answer in answers])
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  it takes half a second to import

    hits = fits[linear_sum_assignment(-fits)]
    return [int((hits >= least).sum()) for least in IOUS]


def _best_threshold(values: Floats, there: NDArray[np.bool_]) -> float:
    """The value from which on phrases are answered for the best correlation."""
    tried = np.unique(np.quantile(values, np.linspace(0, 1, 101)))
    counts = [[(there & (own := values >= least)).sum(), there.sum(), own.sum(), own.size] for least in tried]
    return float(tried[np.argmax([_mcc(np.array(each, np.float64)) for each in counts])])


def _calibration(pairs: Sequence[Pair]) -> Mapping[str, Any]:
    """Calibration error of the score of the regions of pairs that a run would write."""
    regions = [(pair, answer) for pair in pairs if pair.kept for answer in pair.answers]
    scores = np.array([answer.score for _, answer in regions], np.float64)
    right = np.array([is_right(answer.box_xywh_px, pair.boxes_xywh_px) for pair, answer in regions], np.bool_)
    return debiased_calibration_error(scores, right, np.array([pair.image for pair, _ in regions], np.int64)).plain()
