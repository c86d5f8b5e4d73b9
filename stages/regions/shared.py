"""One heat map and one presence for all phrases that name one thing: five noisy answers to one question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS, levels_of
from stages.contract.records import HeatMap, Phrase


def shared_maps(
    phrases: Sequence[Phrase], groups: Sequence[int], maps: Mapping[str, HeatMap]
) -> dict[tuple[str, int], HeatMap]:
    """The mean of the maps of each group, in levels, so that each counts alike and stored maps give the same.

    Each different text of a group counts once. A map without heat stays as it is and does not count.

    Args:
        phrases: Of one image.
        groups: Number of the thing that each phrase names.
        maps: Heat maps by text.

    Returns:
        By the text and the group of a phrase: the group's map, 0 .. 1, with the text and the similarity of the phrase.
    """
    texts: dict[int, dict[str, None]] = {}
    for phrase, group in zip(phrases, groups, strict=True):
        texts.setdefault(group, {})[phrase.text] = None
    several = dict.fromkeys(text for members in texts.values() if len(members) > 1 for text in members)
    clear = [text for text in several if not maps[text].fault]
    quantised = zip(clear, levels_of([maps[text].values for text in clear]), strict=True)
    levels = {text: own for text, own in quantised if own is not None}
    found: dict[tuple[str, int], HeatMap] = {}
    for group, members in texts.items():
        sound = [levels[text] for text in members if text in levels]
        if len(sound) < 2:
            found.update(((text, group), maps[text]) for text in members)
            continue
        total: NDArray[np.float64] = np.sum(sound, axis=0, dtype=np.float64)
        mean = (total / (LEVELS * len(sound))).astype(np.float32)
        for text in members:
            found[text, group] = replace(maps[text], values=mean) if text in levels else maps[text]
    return found


def shared_presences(
    phrases: Sequence[Phrase], groups: Sequence[int], presences: Sequence[float | None]
) -> list[float | None]:
    """The presence of the thing that each phrase names: the mean of the log odds of its different texts.

    Things with fewer than `VOTES` different texts keep the presence of each: of two texts, one may say of the thing
    what is false ("a green car"), and would be believed half. A presence that is not known stays so.

    Args:
        phrases: Of one image.
        groups: Number of the thing that each phrase names.
        presences: 0 .. 1, of each phrase, the same where the text is.
    """
    told: dict[int, dict[str, float]] = {}
    for phrase, group, presence in zip(phrases, groups, presences, strict=True):
        if presence is not None:
            told.setdefault(group, {})[phrase.text] = presence
    shared = {group: _mean_by_log_odds(list(texts.values())) for group, texts in told.items() if len(texts) >= VOTES}
    return [
        None if presence is None else shared.get(group, presence)
        for group, presence in zip(groups, presences, strict=True)
    ]


VOTES: Final = 3
"""Different texts from which on those of a thing share their presence. On 1,000 photographs with five captions the
area under the ROC curve is .924 with 3, .927 with 2 and .920 without; on drawn scenes whose second caption is false in
a detail, 2 took it from .99 to .96 (measured)."""

_CERTAIN: Final = 1e-6
"""Presences are rounded to six decimals, and the log odds of 0 and 1 have no bounds."""


def _mean_by_log_odds(presences: Sequence[float]) -> float:
    inside = [min(max(presence, _CERTAIN), 1 - _CERTAIN) for presence in presences]
    odds = math.exp(fmean(math.log(presence / (1 - presence)) for presence in inside))
    return round(odds / (1 + odds), 6)
