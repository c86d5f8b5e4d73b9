"""Calibrations of an older format are lifted, and those of a newer one are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.scores import calibration_versions
from phrasebox.stages.scores.calibration_versions import CALIBRATION
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error

TODAY: Json = {
    "format": "phrasebox calibration 3",
    "bias": 0.5,
    "weight": {"energy": 2.0},
    "mean": {"energy": 0.25},
    "scale": {"energy": 0.5},
    "made_with": {"model": "demo:1"},
    "made_from": {"regions": 100},
}


def test_an_older_one_is_lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up format 2, in which the bias had another name."""
    before = {**TODAY, "format": "phrasebox calibration 2", "constant": 0.5}
    del before["bias"]
    steps = {
        2: lambda values: {
            "bias": values["constant"],
            **{key: values[key] for key in values if key != "constant"},
        }
    }
    monkeypatch.setattr(calibration_versions, "CALIBRATION", replace(CALIBRATION, oldest=2, steps=steps))
    older = read_calibration(write_json(tmp_path / "older.json", before))
    assert older == read_calibration(write_json(tmp_path / "today.json", TODAY))
    assert older.to_json() == read_calibration(tmp_path / "today.json").to_json()


@pytest.mark.parametrize("number", ["4", "2", "12345678", "٣"])
def test_a_newer_and_a_dropped_one_are_refused(number: str, tmp_path: Path) -> None:
    """Also those with keys that nobody knows yet."""
    other = {**TODAY, "format": f"phrasebox calibration {number}", "later": {}}
    with expect_error(ConfigError, key="regions.calibration"):
        read_calibration(write_json(tmp_path / "c.json", other))


@pytest.mark.parametrize("content", ["", "[]", "[" * 10_000, '"phrasebox calibration 4"', "\udcff"])
def test_what_is_no_object_is_no_calibration(content: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(content, errors="surrogateescape")
    with expect_error(ConfigError, key="regions.calibration"):
        read_calibration(path)
