"""The fit of presence to labelled phrases: by a CLIP or by a source's boxes, with true labels or with noisy ones.

Ground truth says which phrases are there. Captions alone do not: a phrase of an image's captions
is taken as there, and a phrase of another image as absent. Both are wrong at times: captions lie,
and a phrase of another image may fit. So the fit is not of these labels but of what they are noisy
copies of. With y whether a phrase is there, and s whether the captions say it,

    P(y | features)   a logistic regression
    P(s | y)          two rates, the same for all phrases

and expectation maximisation finds the most likely weights and rates together (learning from
noisy labels with unknown rates: Lawrence & Schoelkopf, ICML 2001; Natarajan and others, NIPS
2013, whose forward correction has the same likelihood with known rates).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

from phrasebox.stages.contract.values import Bools, Floats
from phrasebox.stages.scores.logistic import LogisticModel, fit_logistic, roc_area

STEPS: Final = 300  # most steps of the expectation maximisation

TOLERANCE: Final = 1e-5  # change of the rates below which it ends

PresenceT = TypeVar("PresenceT")
PresenceT_co = TypeVar("PresenceT_co", covariant=True)


class PhraseFeatures(Protocol[PresenceT_co]):
    """Features of phrases: `presence.ClipFeatures` of a CLIP, `detected.BoxFeatures` of a source's boxes."""

    @property
    def values(self) -> Floats:
        """The features of the phrases (n, k)."""

    @property
    def ranks(self) -> Floats:
        """The one feature (n,) that ranks phrases of any images by their presence, before any fit."""

    def presence(self, regression: LogisticModel, absent_share: float) -> PresenceT_co:
        """Return a regression that was fitted to phrases, of which such a share is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPresence(Generic[PresenceT]):
    """A fit of presence.

    Attributes:
        presence: The fit as a calibration holds it.
        regression: The fit to the features as they are.
        likely: The presence of each phrase (n,), given its label, too: 0 or 1 where labels are true.
    """

    presence: PresenceT
    regression: LogisticModel
    likely: Floats


def fit_presence(
    features: PhraseFeatures[PresenceT], labels: Bools, *, is_noisy: bool
) -> FittedPresence[PresenceT]:
    """Fit presence to phrases with labels (n,): whether they are there, or with `is_noisy` whether captions say them.

    Raise ValueError if all labels are equal.
    """
    if is_noisy:
        regression, likely = fit_noisy(features.values, labels)
    else:
        regression = fit_logistic(features.values, labels)
        likely = labels.astype(np.float64)
    presence = features.presence(regression, 1.0 - float(likely.mean()))
    return FittedPresence(presence=presence, regression=regression, likely=likely)


def separation(features: PhraseFeatures[object], labels: Bools) -> float:
    """Return the ROC area with which the `ranks` of phrases separate their labels (n,)."""
    return roc_area(features.ranks)(labels.astype(np.float64), (~labels).astype(np.float64))


def fit_noisy(features: Floats, in_captions: Bools) -> tuple[LogisticModel, Floats]:
    """Fit a regression to noisy labels.

    Args:
        features: Features of phrases (n, k).
        in_captions: Whether the captions have the phrase (n,), which is a noisy sign of its
            presence.

    Returns:
        The regression of presence, and the presence of each phrase (n,), given the captions, too.
    """
    presences = in_captions.astype(np.float64)
    rates = np.array([0.05, 0.95])  # of captions that have an absent phrase, and a present one
    fit = fit_logistic(features, presences)
    for _ in range(STEPS):
        likely = fit.probability(features)
        joint = np.where(in_captions[:, None], rates, 1.0 - rates) * np.column_stack([1.0 - likely, likely])
        presences = joint[:, 1] / joint.sum(axis=1)
        weights = np.column_stack([1.0 - presences, presences])
        previous_rates = rates
        rates = (weights * in_captions[:, None]).sum(axis=0) / weights.sum(axis=0)
        fit = fit_logistic(features, presences)
        if np.abs(rates - previous_rates).max() < TOLERANCE:
            break
    return fit, presences
