"""Insertion and deletion: does an image lose its phrase where the heat map is hot, and does the hot part alone keep it?

Pixels are taken in the order of their heat. Deletion hides the hottest ones first, and the faster the phrase's score
falls the smaller the area under its curve. Insertion begins with an image of which nothing is seen and shows the
hottest ones first, and the faster the score rises the larger the area. Two protocols, by name:

rise      Petsiuk, Das, Saenko, "RISE" (BMVC 2018, arXiv 1806.07421), `CausalMetric`. Deletion hides behind the mean
          colour of the model's normalisation, which is 0 there; insertion begins with a blurred image. Both go on to
          the whole image, in steps of 224 pixels; the score is the probability of a class.
authors   Zhao et al., Grad-ECLIP (ICML 2024, arXiv 2502.18816). Deletion hides behind pixels of random colours,
          insertion begins with a black image. Both stop at half of the pixels, in steps of one in 200, and the score is
          read at every tenth step: the accuracy over ImageNet's classes.

Deviations: the score is the phrase's probability among a set of phrases (`probability`), because a caption's phrases
are no classes of which one is right; the curves are read at fewer shares (`PROTOCOLS`), closer together where few
pixels are changed, because there the curves are steep and every point costs a forward pass. `CurveProtocol.shares` in
the papers' steps restores theirs. Pixels of equal heat, such as those where a map is 0, are taken from where the map is
hot outwards.

The area is the trapezoidal one, divided by the range of the shares: 0 .. 1 for a probability, whatever the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TEMPERATURE: Final = 100.0
"""Cosines are multiplied by this before the softmax: the largest logit scale that CLIP learns."""

TIE_BLUR: Final = 0.1
"""Standard deviation of the blur that orders pixels of equal heat, as a share of the image's shorter side."""

Hidden = Literal["mean", "blur", "random", "black"]
"""What stands where nothing is seen: the mean colour of the model's normalisation, the blurred image, random colours,
or black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveProtocol:
    """How a curve is drawn.

    Attributes:
        hidden: What stands where pixels are hidden.
        inserts: Whether the hottest pixels are shown first; otherwise they are hidden first.
        shares: Of the pixels that have changed at each point of the curve, rising from 0.
    """

    hidden: Hidden
    inserts: bool
    shares: tuple[float, ...]


_TO_ALL: Final = (0.0, 0.05, 0.15, 0.35, 0.65, 1.0)
_TO_HALF: Final = (0.0, 0.05, 0.15, 0.3, 0.5)

PROTOCOLS: Final[dict[str, CurveProtocol]] = {
    "deletion_rise": CurveProtocol(hidden="mean", inserts=False, shares=_TO_ALL),
    "insertion_rise": CurveProtocol(hidden="blur", inserts=True, shares=_TO_ALL),
    "deletion_authors": CurveProtocol(hidden="random", inserts=False, shares=_TO_HALF),
    "insertion_authors": CurveProtocol(hidden="black", inserts=True, shares=_TO_HALF),
}
"""Name of the figure -> its protocol."""


def hot_first(heat: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of each pixel of a map (h, w) in the order of heat: 0 for the hottest.

    Pixels of equal heat are in the order of the blurred map; those that are equal there, too, row by row.
    """
    sigma = TIE_BLUR * min(heat.shape)
    near = cv2.GaussianBlur(heat.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    order = np.lexsort((-near.ravel(), -heat.ravel().astype(np.float64)))
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places.reshape(heat.shape)


def shown(places: NDArray[np.int64], protocol: CurveProtocol) -> NDArray[np.bool_]:
    """Which pixels are seen at each point of a curve: their places (h, w) by `hot_first` -> (points, h, w)."""
    changed = np.stack([places < round(share * places.size) for share in protocol.shares])
    return changed if protocol.inserts else ~changed


def probability(cosines: Floats, own: int) -> Floats:
    """The probability of one phrase among several.

    Args:
        cosines: (points, phrases).
        own: Which phrase.

    Returns:
        (points,), 0 .. 1.
    """
    logits = TEMPERATURE * cosines
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    chosen: Floats = weights[:, own] / weights.sum(axis=1)
    return chosen


def area_under(shares: Sequence[float], scores: Floats) -> float:
    """Area under a curve (points,), divided by the range of its shares: the mean height of the curve."""
    widths = np.diff(np.asarray(shares, np.float64))
    return float((widths * (scores[1:] + scores[:-1]) / 2).sum() / widths.sum())
