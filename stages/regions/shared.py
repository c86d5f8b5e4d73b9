"""What the phrases that name one thing share: one map, one presence, a number of regions. They are noisy answers to
one question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np

from stages.contract.levels import LEVELS, quantise
from stages.contract.records import HeatMap, Phrase
from stages.regions.thresholds import Levels


@dataclass(frozen=True, slots=True)
class Thing:
    """Phrases with the same regions.

    Attributes:
        phrases: The phrases of an image that name it, in order.
    """

    phrases: tuple[Phrase, ...]

    @property
    def heads(self) -> dict[str, str]:
        """Different text -> its head noun, that of its first phrase."""
        found: dict[str, str] = {}
        for phrase in self.phrases:
            found.setdefault(phrase.text, phrase.head)
        return found

    @property
    def is_plural(self) -> bool:
        """Whether at least half of the phrases name several."""
        return 2 * sum(phrase.plural for phrase in self.phrases) >= len(self.phrases)

    def levels(self, known: Mapping[str, Levels | None]) -> Levels | None:
        """Return the mean of the maps of the different texts, in levels, so that each counts alike.

        Args:
            known: Text -> levels of its map; those without heat, None, do not count.
        """
        sound = [levels for text in self.heads if (levels := known[text]) is not None]
        if len(sound) < 2:
            return sound[0] if sound else None
        total = np.sum(sound, axis=0, dtype=np.float64)
        return quantise((total / (LEVELS * len(sound))).astype(np.float32))


def things_of(phrases: Sequence[Phrase], numbers: Sequence[int]) -> dict[int, Thing]:
    """Return the thing of each number that phrases have."""
    members: dict[int, list[Phrase]] = {}
    for phrase, number in zip(phrases, numbers, strict=True):
        members.setdefault(number, []).append(phrase)
    return {number: Thing(tuple(own)) for number, own in members.items()}


def levels_of_map(heat_map: HeatMap) -> Levels | None:
    """Return the levels of a heat map, None if it has no heat."""
    return None if heat_map.fault or not math.isfinite(heat_map.similarity) else quantise(heat_map.values)


def shared_presences(
    phrases: Sequence[Phrase], numbers: Sequence[int], presences: Sequence[float | None]
) -> list[float | None]:
    """Return the presence of the thing that each phrase names: the mean of the log odds of its different texts.

    Things with fewer than `VOTES` different texts keep the presence of each: one of two texts may say of the thing what
    is false ("a green car"), and would be believed half. A presence that is not known stays so.

    Args:
        phrases: Of one image.
        numbers: Number of the thing that each phrase names.
        presences: 0 .. 1, of each phrase, the same where the text is.
    """
    texts: dict[int, dict[str, float]] = {}
    for phrase, number, presence in zip(phrases, numbers, presences, strict=True):
        if presence is not None:
            texts.setdefault(number, {})[phrase.text] = presence
    shared = {number: _mean_by_log_odds(own.values()) for number, own in texts.items() if len(own) >= VOTES}
    return [
        None if presence is None else shared.get(number, presence)
        for number, presence in zip(numbers, presences, strict=True)
    ]


VOTES: Final = 3
"""Different texts from which on those of a thing share their presence. On 1,000 photographs with five captions the
area under the ROC curve is 0.924 with 3, 0.927 with 2 and 0.920 without sharing; on drawn scenes whose second caption
is false in a detail, 2 took it from 0.99 to 0.96 (measured)."""

_CERTAIN: Final = 1e-6
"""Presences are rounded to six decimals, and the log odds of 0 and 1 have no bounds."""


def _mean_by_log_odds(presences: Iterable[float]) -> float:
    inside = [min(max(presence, _CERTAIN), 1 - _CERTAIN) for presence in presences]
    odds = math.exp(fmean(math.log(presence / (1 - presence)) for presence in inside))
    return round(odds / (1 + odds), 6)
