"""Phrases that are not in an image: which to ask for, and whether they are recognised as absent.

Each image is asked for phrases of other images, as many as it has phrases with a known place.
Such a phrase shares no word and no head noun with the image's captions. Its head noun names
nothing that the ground truth knows to be in the image. Some of these phrases are in the image
all the same ("bike" where the captions say "bicycle"), so no figure can be perfect.
`without_synonyms` leaves a phrase out if its head noun may name a thing of the captions
("person", "man").

Besides these random phrases there are four harder kinds, which count in no other figure (POPE,
EMNLP 2023, has `random` and `adversarial`):

    same_type     of the same type (people, clothing, ...; Flickr30k Entities names types) as a phrase of the image
    adversarial   with the head nouns that share most images with those of the image and are not among them. Clothing
                  and parts of the body are excluded, because captions often leave them out
    attribute     a phrase of the image in another colour, which no caption says: compared with coloured phrases alone
    said          a phrase that a caption says, and that is false according to the ground truth

Four values are tested as detectors of presence: the `presence` of the phrase by itself;
`presence_of_group`, as a run shares it among the texts of a thing (for an absent phrase, those
of its own image); the cosine; and its z-score over the images.

The other figures are those of SA-Co (facebookresearch/sam3, `sam3/eval/cgf1_eval.py`), on pairs
of image and phrase:

    il_mcc        Matthews' correlation of "the phrase is answered" and "the phrase is there"
    positive_f1   micro F1 of the answers' boxes for phrases that are there, averaged over IoU 0.50, 0.55 .. 0.95
    cgf1          their product

`saco` is that evaluator's own rule: regions with a score of `MIN_ANSWER` or more are the
answer. A presence of `MIN_ANSWER` or more makes all regions of a phrase the answer. The cosine
and its z-score know nothing of presence: their threshold is the one with the best correlation
on these very pairs.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, permutations
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from pipeline.evaluate.estimates import Estimate, debiased_calibration_error, presence_area, sum_estimate
from pipeline.evaluate.matching import Answer, Query
from pipeline.evaluate.metrics import is_right
from pipeline.logistic import Floats
from pipeline.presence_alone import drawn, may_be, words_of
from stages.contract.geometry import Box, box_iou
from stages.contract.records import Phrase, stable_id
from stages.regions.groups import link_phrases, things

MIN_ANSWER: Final = 0.5  # the least presence, or score, of an answer; 0.5 as in SAM 3's evaluator

THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of `regions.min_presence` for which the figures say how much is kept."""

IOUS: Final = tuple(0.5 + 0.05 * step for step in range(10))

WAYS: Final = ("presence", "presence_of_group", "z_score", "similarity")
"""What separates phrases that are there from absent ones: fields of `Pair`."""

HARDER: Final = ("same_type", "adversarial", "attribute", "said")

COLOURS: Final = ("black", "white", "red", "blue", "green", "yellow", "orange", "pink", "purple", "brown")

UNMENTIONED_KINDS: Final = ("clothing", "body")  # sections of things.txt


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriedImage:
    """An image with its captions and phrases, and the phrases to look for in it.

    Attributes:
        number, sample_id, captions, phrases: Those of the dataset's row.
        queries: The phrases that the ground truth knows, present or absent.
        present: Names of things that the ground truth knows to be in the image.
        absent: Phrases that are not in the image, by kind: "random" and the first of `HARDER`.
        voters: Text of an absent phrase -> phrases that name the same thing in the phrase's own
            image.
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
    def types_by_text(self) -> dict[str, str]:
        """Text -> type, for the phrases that the ground truth has a place for; "" if their type is unknown."""
        return {
            query.phrase: query.target.groups.get("type", "")
            for query in self.queries
            if query.target is not None and query.phrase is not None
        }

    @property
    def all_phrases(self) -> tuple[Phrase, ...]:
        """All phrases to look for, those of the image first."""
        return (*self.phrases, *chain(*self.absent.values(), *self.voters.values()))


class PhrasePool:
    """The phrases of all images that the ground truth has a place for, from which absent phrases are drawn.

    Attributes:
        placed: Number of the image and phrase.
        by_type, by_head: The same by type and by head noun.
        aliases: Phrase -> the phrases of its image that name the same thing, itself among them.
        companions: Head noun -> number of images that it shares with each other head noun.
    """

    def __init__(self, images: Sequence[QueriedImage]) -> None:
        self.placed: list[tuple[int, Phrase]] = []
        self.by_type: dict[str, list[tuple[int, Phrase]]] = {}
        self.by_head: dict[str, list[tuple[int, Phrase]]] = {}
        self.aliases: dict[Phrase, list[Phrase]] = {}
        self.companions: dict[str, Counter[str]] = {}
        for image in images:
            self._add(image)

    def _add(self, image: QueriedImage) -> None:
        phrase_by_text = {phrase.text: phrase for phrase in reversed(image.phrases)}
        things = dict(zip(image.phrases, link_phrases(image.captions, image.phrases), strict=True))
        for text, kind in image.types_by_text.items():
            if text in phrase_by_text:
                phrase = phrase_by_text[text]
                self.placed.append((image.number, phrase))
                self.by_type.setdefault(kind, []).append(self.placed[-1])
                self.by_head.setdefault(phrase.head, []).append(self.placed[-1])
                self.aliases[phrase] = [alias for alias in phrase_by_text.values() if things[alias] == things[phrase]]
        for head, companion in permutations(dict.fromkeys(phrase.head for phrase in image.phrases), 2):
            self.companions.setdefault(head, Counter())[companion] += 1

    def nearest_heads(self, heads: Collection[str]) -> list[str]:
        """Return the head nouns that share most images with `heads`, and whose things would be mentioned with them."""
        neighbours: Counter[str] = sum((self.companions.get(head, Counter()) for head in heads), Counter())
        # Each process orders a set of head nouns differently.
        ranking = sorted(neighbours, key=lambda head: (-neighbours[head], head))
        return [head for head in ranking if head in self.by_head and _is_evidence(head, heads)]


def choose_absent_phrases(images: Sequence[QueriedImage]) -> dict[int, QueriedImage]:
    """Return the images with phrases that are not in them, by the image's number.

    The same images in the same order give the same phrases, in every process.
    """
    pool = PhrasePool(images)
    return {image.number: _with_absent_phrases(image, pool) for image in images}


def _with_absent_phrases(image: QueriedImage, pool: PhrasePool) -> QueriedImage:
    rng = random.Random(stable_id(image.sample_id))  # noqa: S311  which phrases are asked for is no secret
    image_words = {word for caption in image.captions for word in words_of(caption)} | set(image.present)
    heads = {phrase.head for phrase in image.phrases}
    types = image.types_by_text
    candidates = {
        "random": [pool.placed for _ in types],
        "same_type": [pool.by_type[kind] for kind in types.values() if kind],
        "adversarial": [pool.by_head[head] for head in pool.nearest_heads(heads)[: len(types)]],
    }
    absent: dict[str, tuple[Phrase, ...]] = {}
    voters: dict[str, tuple[Phrase, ...]] = {}
    for kind, pools in candidates.items():
        texts: set[str] = set()
        drafts = [drawn(rng, part, own=image.number, known=image_words | heads, taken=texts) for part in pools]
        absent[kind] = tuple(phrase for phrase in drafts if phrase)
        for phrase in absent[kind]:
            aliases = (alias for alias in pool.aliases[phrase] if alias != phrase)
            voters[phrase.text] = tuple(alias for alias in aliases if image_words.isdisjoint(words_of(alias.text)))
    variants = [_recolour(phrase, image_words, rng) for phrase in image.phrases if phrase.text in types]
    absent["attribute"] = tuple({phrase.text: phrase for phrase in variants if phrase}.values())
    return replace(image, absent=absent, voters=voters)


def _is_evidence(head: str, heads: Collection[str]) -> bool:
    """Return whether captions with the head nouns `heads` are evidence that no `head` is in the image.

    They are not if one of `heads` may name the same thing, or if captions usually leave out things of this kind.
    """
    kinds = {path[0] for path in things().paths.get(head, ())}
    is_alias = any(may_be(head, other) or may_be(other, head) for other in heads)
    return kinds.isdisjoint(UNMENTIONED_KINDS) and not is_alias


def _recolour(phrase: Phrase, image_words: Collection[str], rng: random.Random) -> Phrase | None:
    """Return a phrase with another colour, None if it has none."""
    words = phrase.text.split()
    colours = [colour for colour in COLOURS if colour not in image_words]
    index = next((at for at, word in enumerate(words) if word in COLOURS), None)
    if index is None or not colours:
        return None
    words[index] = rng.choice(colours)
    return replace(phrase, text=" ".join(words))


def is_coloured(phrase: str) -> bool:
    """Return whether a phrase names a colour that `attribute` exchanges."""
    return not set(COLOURS).isdisjoint(phrase.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A phrase and an image.

    Attributes:
        image: Number of the image.
        text: Text of the phrase.
        kind: "there", "random", or one of `HARDER`.
        similarity: Cosine of both.
        z_score: Deviations of the cosine from the phrase's mean over all images; NaN until all
            images are computed.
        presence: Probability that the phrase is in the image; None if it is not known.
        presence_of_group: The same, as a run shares it among the texts of a thing.
        answers: Regions of a "there" or "random" phrase, whatever its presence; empty for other
            kinds.
        is_written: Whether a run would write the regions: presence reaches `regions.min_presence`.
        boxes_xywh_px: True boxes of the phrase.
        may_be_synonym: Whether an absent phrase may name a thing that the captions call by
            another noun.
    """

    image: int
    text: str
    kind: str
    similarity: float
    z_score: float = math.nan
    presence: float | None
    presence_of_group: float | None
    answers: tuple[Answer, ...] = ()
    is_written: bool = True
    boxes_xywh_px: tuple[Box, ...] = ()
    may_be_synonym: bool = False

    @property
    def is_present(self) -> bool:
        """Whether the phrase is in the image."""
        return self.kind == "there"


@pydantic_dataclass(frozen=True, kw_only=True)
class PresenceShares:
    """The shares of present and of absent phrases with a presence of `presence` or more."""

    presence: float
    present: Annotated[float, Field(serialization_alias="there")]
    absent: float


@pydantic_dataclass(frozen=True, kw_only=True)
class AbsentFigures:
    """The figures of absent phrases.

    Attributes:
        pairs: Numbers of pairs by kind.
        by: For each of `WAYS`: ROC areas by kind of absent phrase (`auc`,
            `auc_without_synonyms`, and those of `HARDER`; None without phrases of both kinds),
            `il_mcc`, `positive_f1` and `cgf1`. None where the value of the way is not known.
        saco: `il_mcc`, `positive_f1` and `cgf1` by the evaluator's own rule.
        ece: Calibration error of all regions.
        ece_there: Calibration error of the regions of present phrases.
        shares: Shares for other values of `regions.min_presence`; None where presence is not known.
    """

    pairs: Mapping[str, int]
    by: Mapping[str, Mapping[str, Estimate | None] | None]
    saco: Mapping[str, Estimate]
    ece: Estimate
    ece_there: Estimate
    shares: Annotated[Sequence[PresenceShares] | None, Field(serialization_alias="kept")]


def absent_figures(pairs: Sequence[Pair]) -> AbsentFigures:
    """Return all figures of pairs."""
    sample = [pair for pair in pairs if pair.kind in ("there", "random")]
    subsets = {
        "auc": sample,
        "auc_without_synonyms": [pair for pair in sample if not pair.may_be_synonym],
        **{f"auc_{kind}": [pair for pair in pairs if pair.is_present or pair.kind == kind] for kind in HARDER},
    }
    subsets["auc_attribute"] = [pair for pair in subsets["auc_attribute"] if is_coloured(pair.text)]
    answers_by_score = [[answer for answer in pair.answers if answer.score >= MIN_ANSWER] for pair in sample]
    return AbsentFigures(
        pairs={
            **{kind: sum(pair.kind == kind for pair in pairs) for kind in ("there", "random", *HARDER)},
            "without_synonyms": sum(not pair.is_present for pair in subsets["auc_without_synonyms"]),
        },
        by={way: _way_figures(way, sample, subsets) for way in WAYS},
        saco=_saco_figures(sample, answers_by_score),
        ece=_score_error(sample),
        ece_there=_score_error([pair for pair in sample if pair.is_present]),
        shares=_written_shares(sample),
    )


def _way_figures(
    way: str, sample: Sequence[Pair], subsets: Mapping[str, Sequence[Pair]]
) -> dict[str, Estimate | None] | None:
    values = _values(sample, way)
    if values is None:
        return None
    threshold = MIN_ANSWER if way.startswith("presence") else _best_threshold(values, _labels(sample))
    answers = [pair.answers if value >= threshold else () for pair, value in zip(sample, values, strict=True)]
    return {**{name: _area(subset, way) for name, subset in subsets.items()}, **_saco_figures(sample, answers)}


def _written_shares(pairs: Sequence[Pair]) -> list[PresenceShares] | None:
    """Return the shares of present and absent phrases that each of `THRESHOLDS` keeps; None without presence."""
    presence = _values(pairs, "presence_of_group")
    if presence is None:
        return None
    is_present = _labels(pairs)

    def share(values: Floats, threshold: float) -> float:
        return float((values >= threshold).mean()) if values.size else 0.0

    return [
        PresenceShares(
            presence=threshold,
            present=share(presence[is_present], threshold),
            absent=share(presence[~is_present], threshold),
        )
        for threshold in THRESHOLDS
    ]


def _area(pairs: Sequence[Pair], way: str) -> Estimate | None:
    values = _values(pairs, way)
    is_present = _labels(pairs)
    if values is None or is_present.all() or not is_present.any():
        return None
    return presence_area(values, is_present, np.array([pair.image for pair in pairs], np.int64))


def _labels(pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    """Return whether each phrase is in its image, (pairs,)."""
    return np.array([pair.is_present for pair in pairs], np.bool_)


def _values(pairs: Sequence[Pair], way: str) -> Floats | None:
    """Return the values of all pairs by a way; None without pairs, or if a value is not known."""
    values = [value for pair in pairs if (value := getattr(pair, way)) is not None]
    return np.array(values, np.float64) if values and len(values) == len(pairs) else None


def _saco_figures(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> dict[str, Estimate]:
    """Return `il_mcc`, `positive_f1` and `cgf1` of pairs and the regions that answer them."""
    rows = []
    for pair, regions in zip(pairs, answers, strict=True):
        is_answered = bool(regions)
        boxes = pair.is_present * (len(regions) + len(pair.boxes_xywh_px))
        counts = (pair.is_present and is_answered, pair.is_present, is_answered, 1, boxes)
        rows.append([*counts, *_count_hits(pair, regions)])
    images, image_index = np.unique([pair.image for pair in pairs], return_inverse=True)
    sums = np.zeros((images.size, 5 + len(IOUS)))  # per image: the bootstrap draws whole images
    np.add.at(sums, image_index, np.array(rows, np.float64).reshape(-1, sums.shape[1]))

    def f1(totals: Floats) -> float:
        return float((2 * totals[5:] / totals[4]).mean()) if totals[4] > 0 else math.nan

    figures = {"il_mcc": _mcc, "positive_f1": f1, "cgf1": lambda totals: _mcc(totals) * f1(totals)}
    numbers = np.arange(images.size)
    return {name: replace(sum_estimate(figure, sums, numbers), n=len(pairs)) for name, figure in figures.items()}


def _mcc(totals: Floats) -> float:
    """Return Matthews' correlation from the numbers of phrases: present and answered, present, answered, all."""
    hits, present, answers, n = totals[:4].tolist()
    product = answers * present * (n - present) * (n - answers)
    return (hits * n - present * answers) / math.sqrt(product) if product > 0 else 0.0


def _count_hits(pair: Pair, answers: Sequence[Answer]) -> list[int]:
    """Count the answers that hit a box, for each of `IOUS`. The assignment of boxes has the highest sum of IoU."""
    if not (answers and pair.boxes_xywh_px):
        return [0] * len(IOUS)
    ious = np.array([[box_iou(answer.box_xywh_px, box) for box in pair.boxes_xywh_px] for answer in answers])
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  it takes half a second to import

    hits = ious[linear_sum_assignment(-ious)]
    return [int((hits >= least).sum()) for least in IOUS]


def _best_threshold(values: Floats, is_present: NDArray[np.bool_]) -> float:
    """Return the value with the best correlation, if phrases are answered from it on."""
    candidates = np.unique(np.quantile(values, np.linspace(0, 1, 101)))
    correlations = []
    for threshold in candidates:
        is_answered = values >= threshold
        counts = [(is_present & is_answered).sum(), is_present.sum(), is_answered.sum(), values.size]
        correlations.append(_mcc(np.array(counts, np.float64)))
    return float(candidates[np.argmax(correlations)])


def _score_error(pairs: Sequence[Pair]) -> Estimate:
    """Return the calibration error of the scores of the regions that a run would write."""
    regions = [(pair, answer) for pair in pairs if pair.is_written for answer in pair.answers]
    scores = np.array([answer.score for _, answer in regions], np.float64)
    right = np.array([is_right(answer.box_xywh_px, pair.boxes_xywh_px) for pair, answer in regions], np.bool_)
    images = np.array([pair.image for pair, _ in regions], np.int64)
    return debiased_calibration_error(scores, right, images)
