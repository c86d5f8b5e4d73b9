"""The evidence of a source's boxes, and whether the source sees a phrase in its image at all.

A source is a detector, or one that lets CLIP name its boxes: the cosine of box and phrase is then
evidence, too.

Presence is the detector's own answer: the score of the best box of a phrase. A run has it
already, while CLIP beside the detector would need other pixels, more memory, and a licence of
its own. The score itself is no probability. `phrasebox calibrate` asks the detector for phrases
of other images, too, and so learns which scores absent phrases get.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Self

import numpy as np
from pydantic import Field

from phrasebox.stages.contract.records import Record, Region
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.scores.fits import Number, Regression, log_odds
from phrasebox.stages.scores.logistic import LogisticModel

FEATURES: Final = ("log_odds", "log_area", "log_area_squared", "rank", "plural")
"""The features of a box that a calibration weighs. Where CLIP names boxes it also weighs `SIMILARITY`."""

SIMILARITY: Final = "similarity"

PRESENCE_FEATURES: Final = ("has_box", "log_odds", SIMILARITY)
"""The features of a phrase. The last one is 0 where no CLIP names boxes, and then has no weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxEvidence:
    """The evidence of one box of a source.

    Attributes:
        score: The source's score, 0 .. 1.
        area: Share of the image that the box covers, > 0 .. 1.
        rank: Number of better boxes of the same phrase.
        is_plural: Whether the phrase names several objects.
        similarity: Cosine of box and phrase, -1 .. 1; None where it is not measured.
    """

    score: float
    area: float
    rank: int
    is_plural: bool
    similarity: float | None = None

    @property
    def log_odds(self) -> float:
        """The log odds of the score."""
        return log_odds(self.score)

    @property
    def features(self) -> dict[str, float]:
        """The `FEATURES`, and `SIMILARITY` where it is measured, by name."""
        log_area = math.log(self.area)
        values = (self.log_odds, log_area, log_area**2, float(self.rank), float(self.is_plural))
        measured = {} if self.similarity is None else {SIMILARITY: self.similarity}
        return dict(zip(FEATURES, values, strict=True)) | measured


BoxesOfPhrase = list[tuple[Region, BoxEvidence]]


def boxes_of(record: Record) -> list[BoxesOfPhrase]:
    """Return the regions that a source gave each phrase of a record, with their evidence."""
    phrases: list[BoxesOfPhrase] = [[] for _ in record.phrases]
    for region in record.regions:
        boxes = phrases[region.phrase_index]
        _, _, width, height = region.box_xywh_px
        evidence = BoxEvidence(
            score=round(region.score, 6),  # workers exchange scores in 32 bits
            area=width * height / (record.width_px * record.height_px),
            rank=len(boxes),
            is_plural=record.phrases[region.phrase_index].plural,
            similarity=round(region.similarity, 6) or None,  # 0 is not measured
        )
        boxes.append((region, evidence))
    return phrases


def presence_features(boxes: BoxesOfPhrase) -> dict[str, float]:
    """Return the `PRESENCE_FEATURES` of a phrase, by name, from its boxes, best first.

    >>> presence_features([])
    {'has_box': 0.0, 'log_odds': 0.0, 'similarity': 0.0}
    """
    best = boxes[0][1] if boxes else None
    values = (0.0, 0.0, 0.0) if best is None else (1.0, best.log_odds, best.similarity or 0.0)
    return dict(zip(PRESENCE_FEATURES, values, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFeatures:
    """The `PRESENCE_FEATURES` of phrases, to fit `DetectorPresence` to.

    Attributes:
        values: Those of the phrases (n, k), without a similarity that is not measured.
    """

    values: Floats

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Return the features of phrases (n, 3), of which the last is 0 where it is not measured."""
        is_measured = values[:, PRESENCE_FEATURES.index(SIMILARITY)].any()
        return cls(values=values if is_measured else values[:, :-1])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        return PRESENCE_FEATURES[: self.values.shape[1]]

    @property
    def ranks(self) -> Floats:
        """The cosine of the best box (n,), or else the log odds of its score; the lowest where there is none.

        CLIP compares a box with the phrases that it may be called alone, but cosines of any images compare.
        """
        return np.where(self.values[:, 0] > 0, self.values[:, -1], -np.inf)

    def presence(self, regression: LogisticModel, absent_share: float) -> DetectorPresence:
        """Return a regression that was fitted to phrases, of which such a share is absent."""
        return DetectorPresence(
            bias=regression.bias, **regression.by_name(self.names), absent_share=absent_share
        )


class DetectorPresence(Regression):
    """The probability that a phrase is in an image, a logistic regression on `PRESENCE_FEATURES`.

    Attributes:
        bias: Bias of the regression.
        absent_share: Share of absent phrases in the fit, which the probability takes for usual.
    """

    names = PRESENCE_FEATURES

    bias: Number
    absent_share: Annotated[Number, Field(gt=0, lt=1)]

    def probability(self, boxes: BoxesOfPhrase) -> float:
        """Return the probability for a phrase with these boxes, 0 .. 1, with six decimals."""
        return self.logistic(presence_features(boxes), self.bias)
