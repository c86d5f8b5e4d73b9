"""Captions that belong to another image: how likely a caption is foreign, and what that says of its phrases.

A phrase alone says little: a cosine deceives in one of seven cases. But the phrases of a foreign
caption are all absent at once. So a share of absent phrases is a mixture of two kinds of captions:

    foreign      in a share F of all captions; each phrase is absent, although the image may show one by chance
    of its own   each phrase is absent with the probability D, a false detail

With r the ratio of the likelihoods of a phrase's signals if it is present and absent (the odds
of its presence over those of the fit), the ratio of both kinds for a caption is

    R = r_caption * product over its phrases of  ((1 - D) r + D) / (C r + 1 - C)

with r_caption that of the whole text, and the chance C of a foreign caption's phrase. Presence
is then (1 - P(foreign)) * P(present | own caption). Shares of absent phrases up to D leave no
room for foreign captions: presence is then moved by Bayes' rule alone (`score.at_share`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from phrasebox.stages.contract.records import Phrase, Record
from phrasebox.stages.scores.fits import log_odds

USUAL_SHARE: Final = 0.05
"""D: the usual share of absent phrases where captions were written for their images."""

CHANCE: Final = 0.3
"""C: with less, more phrases of foreign captions that the image shows by chance save their caption.

0.3 was chosen on 300 photographs (docs/how-to/filter-captions.md)."""

MOST_OF_TEXT: Final = (
    6.0  # nats that the text of a caption weighs: presence was fitted to phrases, not to sentences
)

PRIOR_CAPTIONS: Final = 2.0  # that are their images' own, counted beside all others

MOST_ABSENT: Final = 0.99
"""The highest estimate of a share of absent phrases. With a share of 1 no evidence makes a phrase present,
and the setting `regions.absent_share` refuses it."""


def log_ratio(presence: float, fitted_share: float) -> float:
    """Return log r, given the presence by a fit with a share of absent phrases.

    >>> round(log_ratio(0.5, 0.5), 3), round(log_ratio(0.9, 0.5), 3)
    (0.0, 2.197)
    """
    return log_odds(presence) - log_odds(1.0 - fitted_share)


def caption_log_ratios(record: Record, fitted_share: float) -> dict[int, float]:
    """Return log R of each caption that has phrases; none where the presence of captions or phrases is not known."""
    presence_by_text = {heat_map.text: heat_map.presence for heat_map in record.heat_maps}
    presences = [presence_by_text.get(phrase.text) for phrase in record.phrases]
    log_ratios: dict[int, float] = {}
    for index, of_phrases in phrase_log_ratios(record.phrases, presences, fitted_share).items():
        of_text = record.caption_presences[index] if index < len(record.caption_presences) else None
        if of_text is not None:
            log_ratios[index] = of_phrases + min(
                max(log_ratio(of_text, fitted_share), -MOST_OF_TEXT), MOST_OF_TEXT
            )
    return log_ratios


def phrase_log_ratios(
    phrases: Sequence[Phrase], presences: Sequence[float | None], fitted_share: float
) -> dict[int, float]:
    """Return the part of log R that the different phrases of each caption say, given their presences by a fit."""
    ratios: dict[int, dict[str, float]] = {}
    for phrase, presence in zip(phrases, presences, strict=True):
        if presence is not None:
            r = math.exp(log_ratio(presence, fitted_share))
            likelihoods = ((1.0 - USUAL_SHARE) * r + USUAL_SHARE) / (CHANCE * r + 1.0 - CHANCE)
            ratios.setdefault(phrase.caption_index, {})[phrase.text] = math.log(likelihoods)
    return {index: math.fsum(texts.values()) for index, texts in ratios.items()}


def foreign_share(absent_share: float) -> float:
    """Return F, the share of foreign captions among captions with a share of absent phrases."""
    return max(0.0, (absent_share - USUAL_SHARE) / (1.0 - USUAL_SHARE))


def foreign_probability(caption_log_ratio: float, share: float) -> float:
    """Return the probability that a caption is foreign, given log R and F."""
    return share / (share + (1.0 - share) * math.exp(caption_log_ratio)) if share > 0.0 else 0.0


def without_foreign(
    phrases: Sequence[Phrase], presences: Sequence[float | None], foreign: Mapping[int, float]
) -> list[float | None]:
    """Return the presences of phrases, lower where their captions are likely foreign.

    A text that several captions say has the highest of its presences.

    Args:
        phrases: The phrases of an image.
        presences: Their presence if their captions are the image's own; None if it is not known.
        foreign: Index of a caption -> the probability that it is foreign.
    """
    if not foreign:
        return list(presences)
    highest: dict[str, float] = {}
    for phrase, presence in zip(phrases, presences, strict=True):
        if presence is not None:
            likely = round(presence * (1.0 - foreign.get(phrase.caption_index, 0.0)), 6)
            highest[phrase.text] = max(likely, highest.get(phrase.text, 0.0))
    return [highest.get(phrase.text) for phrase in phrases]


def estimate_absent_share(log_ratios: Sequence[float]) -> float:
    """Return the share of absent phrases that makes captions with these log R most likely, 0.05 .. 0.99.

    Expectation maximisation of the share alone (Saerens, Latinne and Decaestecker, Neural
    Computation 14, 2002). `PRIOR_CAPTIONS` captions that are their images' own count beside
    them, so that a few captions move the share little.

    >>> estimate_absent_share([]), estimate_absent_share([9.0] * 50), estimate_absent_share([-9.0, 9.0] * 50)
    (0.05, 0.05, 0.52)
    """
    share = 0.5
    for _ in range(200):
        foreign = math.fsum(foreign_probability(ratio, share) for ratio in log_ratios)
        share = foreign / (len(log_ratios) + PRIOR_CAPTIONS)
    return min(MOST_ABSENT, round(USUAL_SHARE + (1.0 - USUAL_SHARE) * share, 2))
