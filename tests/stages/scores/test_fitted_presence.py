"""The fit of presence to true and to noisy labels, by either kind of features."""

import numpy as np
import pytest

from phrasebox.stages.contract.values import Bools, Floats
from phrasebox.stages.scores.detected import BoxFeatures
from phrasebox.stages.scores.fitted_presence import fit_noisy, fit_presence, separation
from phrasebox.stages.scores.logistic import fit_logistic
from phrasebox.stages.scores.presence import FEATURES, ClipFeatures, ImageStatistics


@pytest.mark.parametrize(("lies", "fits"), [(0.0, 0.0), (0.3, 0.1), (0.6, 0.05)])
def test_the_fit_finds_the_share_of_captions_that_lie_and_the_regression_beneath(
    lies: float, fits: float
) -> None:
    """lies: phrases of captions that are absent; fits: phrases of other images that are there."""
    rng = np.random.default_rng(3)
    said = np.arange(8000) < 4000
    there = np.where(said, rng.random(8000) >= lies, rng.random(8000) < fits)
    features = rng.normal(size=(8000, 2)) + np.column_stack([2.2 * there, np.zeros(8000)])
    fit, likely = fit_noisy(features, said)
    assert 1 - likely[said].mean() == pytest.approx(lies, abs=0.03)
    assert likely[~said].mean() == pytest.approx(fits, abs=0.03)
    clean = fit_logistic(features, there)
    assert np.abs(fit.probability(features) - clean.probability(features)).mean() < 0.02


def labelled(columns: int) -> tuple[Floats, Bools]:
    """Features of phrases, of which the last tells best whether they are there, and whether they are."""
    rng = np.random.default_rng(5)
    there = np.arange(600) < 200
    values = rng.normal(size=(600, columns))
    values[:, -1] += 1.5 * there
    return values, there


def clip_features(values: Floats) -> ClipFeatures:
    embeddings = np.random.default_rng(6).normal(size=(20, 8)).astype(np.float32)
    return ClipFeatures(images=ImageStatistics.of(embeddings), values=values)


@pytest.mark.parametrize("is_noisy", [False, True])
def test_both_kinds_of_features_are_fitted_alike(is_noisy: bool) -> None:
    values, there = labelled(3)
    values[:, 0] = 1.0
    wide = np.zeros((600, 5))
    wide[:, [0, 1, FEATURES.index("deviation")]] = values
    by_boxes = fit_presence(BoxFeatures.of(values), there, is_noisy=is_noisy)
    by_clip = fit_presence(clip_features(wide), there, is_noisy=is_noisy)
    assert by_clip.likely == pytest.approx(by_boxes.likely)
    assert by_clip.presence.absent_share == pytest.approx(by_boxes.presence.absent_share)
    assert by_clip.presence.weight["deviation"] == pytest.approx(by_boxes.presence.weight["similarity"])
    assert by_clip.presence.bias == by_clip.regression.bias
    assert separation(clip_features(wide), there) == separation(BoxFeatures.of(values), there) > 0.8


def test_true_labels_are_the_presence_and_noisy_ones_are_doubted() -> None:
    values, there = labelled(5)
    true = fit_presence(clip_features(values), there, is_noisy=False)
    assert true.likely.tolist() == there.astype(float).tolist()
    assert true.presence.absent_share == pytest.approx(2 / 3)
    says = there ^ (np.arange(600) % 5 == 0)
    noisy = fit_presence(clip_features(values), says, is_noisy=True)
    assert 0 < noisy.likely.min() < noisy.likely.max() < 1
    assert noisy.presence.absent_share == pytest.approx(1 - noisy.likely.mean())
