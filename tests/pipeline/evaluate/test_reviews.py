"""Estimates from people's answers, and scores fitted to them."""

from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.calibrate.review_fit import _correct_presence, fit_answers
from phrasebox.pipeline.evaluate.reviews import Agreement, measure_agreement
from phrasebox.stages.scores.presence import ImageStatistics, Presence
from phrasebox.stages.scores.score import FEATURES, Calibration, at_share
from tests.build.datasets import Json

COUNT = 20_000


def test_agreement() -> None:
    answers = [["right"], ["right", "right", "wrong"], ["wrong", "wrong"]]
    assert measure_agreement(answers) == Agreement(regions=2, share=2 / 4)
    assert measure_agreement(answers[:1]) == Agreement(regions=0, share=None)


def calibration_of(**more: Any) -> Calibration:
    weight = dict.fromkeys(FEATURES, 0.0) | {"energy": 1.0, "log_area": -0.5}
    same: Json = {"mean": dict.fromkeys(FEATURES, 0.2), "scale": dict.fromkeys(FEATURES, 2.0)}
    return Calibration(bias=0.3, weight=weight, **same, made_with={}, made_from={}, **more)


IMAGES = ImageStatistics(mean=np.zeros(2), directions=np.zeros((1, 2)), rest=0.0, count=2)
PRESENCE = Presence(
    bias=0.5, weight={"similarity": 2.0}, mean={"similarity": 0.0}, scale={"similarity": 1.0}, images=IMAGES
)


def simulate_answers(calibration: Calibration, shift: float, count: int) -> tuple[Any, Any, Any]:
    """Features, log odds of presence, and what people say where all log odds are too high by a shift."""
    rng = np.random.default_rng(2)
    features = rng.normal(0.2, 2.0, (count, len(FEATURES)))
    odds = rng.normal(2.0, 1.5, (count, 1))
    weights = [calibration.weight[name] / calibration.scale[name] for name in FEATURES]
    total = calibration.bias + (features - 0.2) @ weights
    right = rng.random(count) < 1 / (1 + np.exp(shift - total))
    is_present = rng.random(count) < 1 / (1 + np.exp(shift - odds[:, 0]))
    return features, odds, np.where(is_present, np.where(right, "right", "wrong"), "absent")


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_known_calibration_is_corrected_by_as_much_as_answers_say(shift: float) -> None:
    known = calibration_of(presence=PRESENCE)
    features, odds, answers = simulate_answers(known, shift, 200)
    new, new_odds, new_answers = simulate_answers(known, shift, COUNT)
    fit = fit_answers(features, odds, answers, known)
    assert fit.presence.bias == pytest.approx(-shift, abs=0.6)
    assert abs(fit.scores(new, new_odds).mean() - (new_answers == "right").mean()) < 0.05
    scratch = fit_answers(features, odds, answers, None)
    assert scratch.presence is None
    assert abs(scratch.scores(new, new_odds).mean() - (new_answers == "right").mean()) < 0.07


def test_few_answers_change_the_known_weights_little_and_one_kind_of_answer_is_rejected() -> None:
    features, odds, answers = simulate_answers(calibration_of(), 0.0, 50)
    fit = fit_answers(features, odds, answers, calibration_of())
    slopes = dict(zip(FEATURES, fit.right.weight / fit.right.scale, strict=True))
    assert slopes["energy"] == pytest.approx(0.5, abs=0.2)
    assert slopes["log_area"] == pytest.approx(-0.25, abs=0.2)
    for answer in ("right", "wrong"):
        with pytest.raises(ValueError, match="right and others that are wrong"):
            fit_answers(features, odds, np.full(50, answer), None)


def test_presence_that_nobody_denies_does_not_become_certain_and_never_falls_with_its_odds() -> None:
    known = calibration_of(presence=PRESENCE)
    features, odds, answers = simulate_answers(known, 0.0, 200)
    answers = np.where(answers == "absent", "wrong", answers)
    fit = fit_answers(features, odds, answers, known)
    assert fit.presence.probability(np.zeros((1, 1)))[0] < 0.99
    upside_down = np.where(odds[:, 0] > np.median(odds), "absent", answers)
    assert fit_answers(features, odds, upside_down, known).presence.weight[0] >= 0.0


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_file_gives_the_presence_that_was_fitted(share: float) -> None:
    """Log odds that a run sees are those of the calibration, moved to the share that its settings expect."""
    known = calibration_of(presence=PRESENCE)
    fit = fit_answers(*simulate_answers(known, 1.0, 200), known)
    corrected = _correct_presence(known, fit.presence, share)

    def presence_of(presence: Presence, similarity: float) -> float:
        total = presence.bias + presence.weight["similarity"] * similarity
        return at_share(1 / (1 + np.exp(-total)), presence.absent_share, share)

    for similarity in (-1.0, 0.1, 1.0):
        before = presence_of(PRESENCE, similarity)
        expected = fit.presence.probability(np.array([[np.log(before / (1 - before))]]))[0]
        assert presence_of(corrected, similarity) == pytest.approx(expected, abs=1e-4)
