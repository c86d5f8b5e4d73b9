"""Scores by hand; calibrations, the probabilities that they give, and files that are none."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.scores.fitted_cut import CUT_FEATURES
from phrasebox.stages.scores.learned_box import INPUTS
from phrasebox.stages.scores.score import MOST_BYTES, Calibration, Evidence, read_calibration
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error

EVIDENCE = Evidence(
    energy=0.5, area=0.1, mean_inside=0.7, mean_outside=0.2, peak=1.0, threshold=0.4, similarity=0.25
)


def test_the_score_by_hand() -> None:
    assert (EVIDENCE.contrast, EVIDENCE.score) == (pytest.approx(0.5), 0.25)
    assert replace(EVIDENCE, mean_outside=0.8).score == 0.0, "colder than the rest"


def calibration_of(**weight: float) -> Calibration:
    return Calibration(
        bias=0.5,
        weight=weight,
        mean=dict.fromkeys(weight, 0.25),
        scale=dict.fromkeys(weight, 0.5),
        made_with={"model": "demo:1"},
        made_from={"regions": 100},
    )


def test_probability_by_hand() -> None:
    """0.5 + 2 * (0.5 - 0.25) / 0.5 = 1.5."""
    assert calibration_of(energy=2.0).probability(EVIDENCE) == pytest.approx(0.817574, abs=1e-6)
    assert calibration_of().probability(EVIDENCE) == pytest.approx(0.622459, abs=1e-6)
    assert calibration_of(energy=1e9).probability(EVIDENCE) == 1.0
    assert calibration_of(energy=-1e9).probability(EVIDENCE) == 0.0


def test_the_farthest_feature_is_told_with_its_shift() -> None:
    """energy: (0.5 - 0.25) / 0.5; area is no feature; similarity: (0.25 - 0.25) / 0.5, once .25 and once -.75."""
    calibration = calibration_of(energy=1.0, similarity=0.0)
    assert calibration.shift([EVIDENCE]) == ("energy", pytest.approx(0.5))
    other = replace(EVIDENCE, similarity=-0.75, energy=0.0)
    assert calibration.shift([EVIDENCE, other]) == ("similarity", pytest.approx(-1.0))


def halves(*shape: int, value: float = 0.0) -> str:
    return base64.b64encode(np.full(shape, value, "<f2").tobytes()).decode()


USUAL: Json = {"mean": [0.5, 0.5, -1.0, -1.0], "words": ["dog"], "terms": halves(4)}
BOX: Json = {"usual": USUAL, "mean": "", "scale": "", "networks": []}
ONES = halves(INPUTS, value=1.0)
ENDLESS = {**BOX, "mean": halves(INPUTS, value=float("nan")), "scale": ONES}


CUT: Json = {part: dict.fromkeys(CUT_FEATURES, 0.0) for part in ("weight", "mean", "scale")} | {"usual": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"cut": {"weight": {}}},
        {"cut": CUT},
        {"cut": {**CUT, "usual": {"dog": float("inf")}}},
        {"format": "other"},
        {"weight": {"luck": 1.0}},
        {"bias": float("nan")},
        {"scale": {"energy": 0.0}},
        {"box": ENDLESS},
        {
            "box": {
                **BOX,
                "mean": halves(INPUTS),
                "scale": halves(INPUTS, value=1.0),
                "networks": [halves(9)],
            }
        },
        {"box": {**BOX, "networks": [halves(1)] * 9}},
        {"box": {**BOX, "usual": {**USUAL, "terms": halves(5)}}},
        {"weight": {"agreement": 1.0}, "mean": {"agreement": 0.0}, "scale": {"agreement": 1.0}},
        {"cut": {**CUT, **{part: {"share": 1.0} for part in ("weight", "mean", "scale")}}},
    ],
)
def test_what_is_no_calibration_is_refused(change: Json, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibration = calibration_of(energy=1.0)
    path.write_text(calibration.to_json())
    assert read_calibration(path) == calibration
    write_json(path, {**json.loads(calibration.to_json()), **change})
    with expect_error(ConfigError, key="regions.calibration"):
        read_calibration(path)


def test_a_file_beyond_any_calibration_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with expect_error(ConfigError, key="regions.calibration"):
        read_calibration(tmp_path / "c.json")
    with expect_error(ConfigError, key="regions.calibration"):
        read_calibration(tmp_path / "gone.json")
