"""Calibrations: what they answer, and what is no calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.contract.errors import ConfigError
from stages.regions.fitted import FEATURES as CUT_FEATURES
from stages.regions.score import FEATURES, Calibration, Evidence, read_calibration

EVIDENCE = Evidence(energy=0.5, area=0.1, mean_inside=0.7, mean_outside=0.2, peak=1.0, threshold=0.4, similarity=0.25)


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


def test_the_farthest_feature_is_told_with_its_shift() -> None:
    """energy: (0.5 - 0.25) / 0.5; area is no feature; similarity: (0.25 - 0.25) / 0.5, once .25 and once -.75."""
    calibration = calibration_of(energy=1.0, similarity=0.0)
    assert calibration.shift([EVIDENCE]) == ("energy", pytest.approx(0.5))
    assert calibration.shift([EVIDENCE, replace(EVIDENCE, similarity=-0.75, energy=0.0)]) == (
        "similarity",
        pytest.approx(-1.0),
    )


def test_it_stays_within_0_and_1() -> None:
    assert calibration_of(energy=1e9).probability(EVIDENCE) == 1.0
    assert calibration_of(energy=-1e9).probability(EVIDENCE) == 0.0


def test_a_file_gives_the_same_calibration(tmp_path: Path) -> None:
    calibration = calibration_of(**dict.fromkeys(FEATURES, 0.3))
    (tmp_path / "c.json").write_text(calibration.to_json())
    assert read_calibration(tmp_path / "c.json") == calibration


def test_a_file_of_the_former_format_does_not_tell_presence(tmp_path: Path) -> None:
    values = json.loads(replace(calibration_of(energy=1.0), presence={"bias": 1.0}).to_json())
    (tmp_path / "c.json").write_text(json.dumps(values))
    assert read_calibration(tmp_path / "c.json").presence == {"bias": 1.0}
    del values["presence"]
    (tmp_path / "c.json").write_text(json.dumps({**values, "format": "phrasebox calibration 1"}))
    assert read_calibration(tmp_path / "c.json") == calibration_of(energy=1.0)


def test_a_file_of_the_format_before_does_not_say_where_to_cut(tmp_path: Path) -> None:
    values = json.loads(replace(calibration_of(energy=1.0), presence={"bias": 1.0}).to_json())
    del values["cut"]
    (tmp_path / "c.json").write_text(json.dumps({**values, "format": "phrasebox calibration 2"}))
    assert read_calibration(tmp_path / "c.json") == replace(calibration_of(energy=1.0), presence={"bias": 1.0})


CUT: dict[str, Any] = {
    "usual": {},
    **{part: dict.fromkeys(CUT_FEATURES, 0.0) for part in ("weight", "mean", "scale")},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": {"weight": {}}}, "share"),
        ({"cut": CUT}, "not 0"),
        ({"cut": {**CUT, "usual": {"dog": float("inf")}}}, "finite"),
        ({"cut": {**CUT, "usual": None}}, "not a calibration"),
        ({"format": "other"}, "expected the format"),
        ({"weight": {"luck": 1.0}}, "unknown features luck"),
        ({"bias": float("nan")}, "finite"),
        ({"bias": "1"}, "not a calibration"),
        ({"scale": {"energy": 0.0}}, "scales that are not 0"),
        ({"mean": {}}, "lacks 'energy'. phrasebox calibrate makes one"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_calibration_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**json.loads(calibration_of(energy=1.0).to_json()), **change}))
    with pytest.raises(ConfigError, match=message):
        read_calibration(path)


@pytest.mark.parametrize("content", ["[1]", "{", '"x"', "{}"])
def test_damaged_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ConfigError, match=r"regions\.calibration"):
        read_calibration(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="cannot read"):
        read_calibration(tmp_path / "gone.json")
