"""What each command advises, from figures that are given."""

from typing import Any

import pytest

from pipeline.evaluate.verdicts import calibration_verdict, evaluation_verdict, review_verdict, tuning_verdict

BETTER: dict[str, Any] = {"value": 0.02, "low": 0.01, "high": 0.03, "n": 200}
WORSE: dict[str, Any] = {"value": -0.02, "low": -0.03, "high": -0.01, "n": 200}
UNDECIDED: dict[str, Any] = {"value": 0.02, "low": -0.01, "high": 0.05, "n": 200}


FALLS = "falls by 0.020 (95 % interval 0.010 to 0.030)"
MAY_FALL = "falls by 0.020 (95 % interval -0.010 to 0.050)"
RISES = "rises by 0.020 (95 % interval 0.010 to 0.030)"


@pytest.mark.parametrize(
    ("gain", "replaces", "verdict", "change"),
    [
        (BETTER, True, "use it instead of the dataset's calibration", FALLS),
        (UNDECIDED, True, "keep the dataset's calibration. The new one is not shown to be better", MAY_FALL),
        (WORSE, True, "keep the dataset's calibration. The new one is worse", RISES),
        (BETTER, False, "use it. It tells right regions from wrong ones", FALLS),
        (UNDECIDED, False, "do not use it, it needs more images", MAY_FALL),
        (WORSE, False, "do not use it, it needs more images", RISES),
    ],
)
def test_a_calibration_is_advised_if_it_is_better_beyond_chance(gain, replaces, verdict, change) -> None:
    sentence = calibration_verdict({"gain": gain, "replaces": replaces})
    assert sentence.startswith(f"Verdict: {verdict}")
    assert change in sentence


@pytest.mark.parametrize(
    ("gain", "replaces", "verdict"),
    [
        (BETTER, True, "use it: "),
        (BETTER, False, "use it: "),
        (UNDECIDED, True, "keep the dataset's calibration, or answer 100 more. "),
        (UNDECIDED, False, "keep the dataset's scores, which only rank, or answer 100 more. "),
        (WORSE, True, "keep the dataset's calibration. The new calibration is worse: "),
    ],
)
def test_answers_that_do_not_decide_ask_for_more(gain: Any, replaces: bool, verdict: str) -> None:
    assert review_verdict({"gain": gain, "replaces": replaces}).startswith(f"Verdict: {verdict}")


TUNED: dict[str, Any] = {"by": "box_iou", "steps": [{}, {}], "left_out": 0, "best": {}, "gain": UNDECIDED}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            {"steps": [], "left_out": 24, "baseline_s": 180.0, "images": 20},
            "no try was begun: the two baselines took 3 minutes; give --minutes 30 or --most 10.",
        ),
        ({}, "keep the dataset's settings. Tries that are shown to be better in box_iou: 0 of 2."),
        (
            {"left_out": 3},
            "keep the dataset's settings. Tries that are shown to be better in box_iou: 0 of 2; --minutes ",
        ),
        ({"steps": []}, "keep the dataset's settings. No try suits the model and the ground truth."),
        ({"best": {"explain.kind": "gem"}, "gain": BETTER}, "use the new settings: box_iou rises by 0.020 (95 % "),
    ],
)
def test_settings_are_advised_if_they_were_tried_and_are_better(values: dict[str, Any], verdict: str) -> None:
    assert tuning_verdict({**TUNED, **values}).startswith(f"Verdict: {verdict}")


def line(score: float, share: float, *precision: float, n: int = 100) -> dict[str, Any]:
    value, low, high = precision
    return {"score": score, "kept": share, "precision": {"value": value, "low": low, "high": high, "n": n}}


HALF = line(0.0, 1.0, 0.6, 0.51, 0.7)
FEW = line(0.0, 1.0, 0.2, 0.12, 0.29)
FILTERED = line(0.5, 0.25, 0.38, 0.19, 0.57)
RIGHT = line(0.6, 0.1, 0.7, 0.6, 0.8)
TINY = line(0.9, 0.01, 1.0, 1.0, 1.0, n=4)


@pytest.mark.parametrize(
    ("above", "lines", "verdict", "right"),
    [
        (BETTER, [HALF, RIGHT], "use the regions: ", "of the regions 60% (95 % interval 51% to 70%) are right"),
        (BETTER, [FEW, RIGHT], "use the regions with --min-score 0.6: ", "0.6 or more (10% of all) 70% (95 %"),
        (BETTER, [FEW, FILTERED, TINY], "look at the regions before you use them. ", "0.5 or more (25% of all) 38%"),
        (UNDECIDED, [FEW, RIGHT], "do not rely on the regions. Their box recall is not shown to be higher ", "70%"),
        (WORSE, [FEW, TINY], "do not rely on the regions. Their box recall is lower ", "of the regions 20%"),
        (None, [FEW, RIGHT], "use the regions with --min-score 0.6: ", "70% (95 % interval 60% to 80%) are right."),
    ],
)
def test_regions_are_advised_from_the_score_on_that_leaves_half_right(above, lines, verdict, right) -> None:
    metrics = {} if above is None else {"box_recall_above_text": above}
    sentence = evaluation_verdict({"metrics": metrics, "thresholds": lines})
    assert sentence.startswith(f"Verdict: {verdict}")
    assert right in sentence


def test_a_dataset_without_regions() -> None:
    nothing = {"score": 0.0, "kept": None, "precision": {"value": None, "low": None, "high": None, "n": 0}}
    assert evaluation_verdict({"metrics": {}, "thresholds": [nothing]}) == "Verdict: there is no region to use."
