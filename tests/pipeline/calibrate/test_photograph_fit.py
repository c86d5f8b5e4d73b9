"""From captioned photographs with boxes to a calibration that later runs find by themselves."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calibrations
from phrasebox.pipeline import terminal
from phrasebox.pipeline.calibrate import photograph_fit, presence, truth_fit
from phrasebox.pipeline.run import calibration_cache
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import manifest_of
from tests.pipeline.commands.evaluated import called, config_of, drawing, printed, run_aloud

drawn = drawing(24, 43)
"""Scenes lie as photographs do: captions.jsonl, images/ and truth.json."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's calibrations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 20)
    monkeypatch.setattr(presence, "FEWEST_PHRASES", 20)
    folder = calibration_cache.calibration_folder()
    assert folder is not None
    return folder


def judge(monkeypatch: pytest.MonkeyPatch, low: float) -> None:
    """Let the lower end of the gain be another: some twenty scenes are too few to show one."""
    write = photograph_fit.write_calibration

    def write_judged(*arguments: Any) -> Any:
        figures = write(*arguments)
        return replace(figures, gain=replace(figures.gain, low=low))

    monkeypatch.setattr(photograph_fit, "write_calibration", write_judged)


@pytest.mark.slow
def test_later_runs_find_the_calibration_by_weights_and_settings(
    drawn: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, 0.01)
    code, text, errors = called("calibrate", "--model", "demo", "--photographs", drawn)
    assert code == 0, errors
    [file] = cache.iterdir()  # the dataset between is gone
    assert str(file) in text.replace("\n", "")
    assert "later runs of the model with these settings take it" in text.replace("\n", " ")
    own = read_calibration(file)
    assert file.name.startswith(own.made_with["model"].replace(":", "-"))

    _, said = run_aloud(config_of(drawn, output={"path": str(tmp_path / "same")}))
    assert manifest_of(tmp_path / "same")["calibration"] == own.digest
    assert "Scores are calibrated" in said
    other = config_of(drawn, regions={"min_area_px": 17}, output={"path": str(tmp_path / "other")})
    run_aloud(other)
    assert manifest_of(tmp_path / "other")["calibration"] is None


@pytest.mark.slow
def test_one_that_is_not_shown_to_help_is_not_kept(
    drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(monkeypatch, -0.01)
    code, text, errors = called("calibrate", "--model", "demo", "--photographs", drawn)
    assert code == 0, errors
    assert "do not use it" in text.replace("\n", " ")
    assert "not kept" in text.replace("\n", " ")
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_a_stopped_fit_shows_its_progress_and_goes_on(
    drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    command = ("calibrate", "--model", "demo", "--photographs", drawn)
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "LINE_SECONDS", 0.0)
        patch.setattr(photograph_fit, "write_calibration", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        code, text, errors = called(*command)
    assert code == 130
    assert errors == "stopped. The same command goes on with the heat maps that are made.\n"
    assert "images: 24 of 24" in text
    [work] = cache.iterdir()
    assert f"making heat maps, in {work}\n" in text
    for hint in ("phrasebox inspect", "phrasebox export", "images/s in this run"):
        assert hint not in text, "the dataset is no result"
    [shard] = (work / "dataset" / "data").iterdir()
    made_ns = shard.stat().st_mtime_ns
    times = []
    write = photograph_fit.write_calibration

    def write_noted(*arguments: Any) -> Any:
        times.append(shard.stat().st_mtime_ns)
        return write(*arguments)

    monkeypatch.setattr(photograph_fit, "write_calibration", write_noted)
    text = printed(*command)
    assert times == [made_ns]
    assert "--fresh" not in text
    assert "right" in text


@pytest.mark.slow
def test_a_named_file_changes_nothing_for_other_runs(drawn: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "mine.json"
    code, _, errors = called("calibrate", "--model", "demo", "--photographs", drawn, "--out", out)
    assert code == 0, errors
    assert read_calibration(out).of_regions
    assert not cache.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("calibrating")] == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "name a dataset"),
        (("out",), "--out"),
        (("out", "--out", "a.json", "--model", "demo"), "--model"),
        (("--photographs", "missing", "--model", "demo"), "captions.jsonl"),
        (("--photographs", "missing", "--reviews"), "--reviews"),
        (("out", "--photographs", "missing"), "DATASET"),
        (("--photographs", "missing", "--resized"), "--resized"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: tuple[str, ...], word: str) -> None:
    code, _, errors = called("calibrate", *arguments)
    assert code != 0
    assert word in errors.replace("\n", " ")


def test_a_model_that_is_missing_is_named_by_its_option(drawn: Path) -> None:
    code, _, errors = called("calibrate", "--photographs", drawn, "--model", "ViT-B-61/openai")
    assert code == 2
    assert errors.startswith("error: --model: there is no model 'ViT-B-61'")


@pytest.mark.slow
def test_the_table_has_a_row_for_each_model_and_names_those_that_fail(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"missing\.pt"):
        calibrations.main(
            [
                "demo",
                str(tmp_path / "missing.pt"),
                "--photographs",
                str(drawn),
                "--out",
                str(tmp_path / "out"),
            ]
        )
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| demo |" in table
    assert "| demo |" in capsys.readouterr().out
    assert read_calibration(tmp_path / "out" / "demo.json").of_regions
