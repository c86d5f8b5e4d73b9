"""The calibration of other models: brought to a model by the first images of a run, and called an estimate."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest

from phrasebox.pipeline.calibrate import presence, truth_fit
from phrasebox.pipeline.calibrate.box_fit import _standardise
from phrasebox.pipeline.dataset import open_dataset
from phrasebox.pipeline.dataset.score_choice import RegionChoice, count_scores, select
from phrasebox.pipeline.locator import Locator
from phrasebox.pipeline.run import presence_fit
from phrasebox.pipeline.run.calibration import GENERIC_FILE, find_generic_calibration
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import copy_of, manifest_of
from tests.messages import assert_message, expect_error
from tests.pipeline.commands.evaluated import called, config_of, drawing, printed, run_aloud
from tests.pipeline.light import assert_alike, rows_of
from tests.pipeline.reviewer import review
from tests.pipeline.viewer.conftest import serving

PLAIN = {"rule": "fitted", "upsample": "linear", "smooth_patches": 1.0}
"""Settings of regions that the generic calibration was made with, in place of those of `demo`."""

drawn = drawing(48, 43)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_fit, "FEWEST_IMAGES", 10)
    monkeypatch.setattr(presence_fit, "LEAST_LOOK", 16)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 10)
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 20)
    monkeypatch.setattr(presence, "FEWEST_PHRASES", 20)


def generic(scenes: Path, out: Path, **regions: Any) -> Any:
    output = {"path": str(out), "rows_per_file": 8}
    return config_of(scenes, regions={**PLAIN, "calibration": "generic", **regions}, output=output)


@pytest.fixture(scope="module")
def made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset with the generic calibration, and what the run said."""
    out = tmp_path_factory.mktemp("generic") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence_fit, "FEWEST_IMAGES", 10)
        patch.setattr(presence_fit, "LEAST_LOOK", 16)
        patch.setattr(presence_fit, "FEWEST_PHRASES", 10)
        _, text = run_aloud(generic(drawn, out))
    return out, text


def test_a_run_says_and_stores_that_its_scores_are_estimates(made: tuple[Path, str]) -> None:
    out, text = made
    margin = read_calibration(GENERIC_FILE).margin
    assert margin is not None
    assert "Scores are estimated" in text
    assert f"up to {margin:g} too high" in text
    manifest = manifest_of(out)
    assert manifest["scores"]["estimated_margin"] == margin
    assert manifest["calibration"] == manifest["run"]["presence"]
    assert manifest["config"]["regions"]["rule"] == "fitted"
    assert "Scores are estimated" in (out / "README.md").read_text()
    assert "Scores are estimated" in (out / "croissant.json").read_text()


def test_the_viewer_calls_them_estimates(made: tuple[Path, str]) -> None:
    with serving(made[0]) as served:
        page = httpx2.get(f"{served.url}/stats").text
    assert f"less {open_dataset(made[0]).score_margin}: the scores are estimated" in page


def test_its_boxes_are_standardised_by_the_images_and_its_scores_are_not(made: tuple[Path, str]) -> None:
    stored = read_calibration(made[0] / "presence.json")
    fitted = read_calibration(GENERIC_FILE)
    assert stored.box is not None
    assert fitted.box is not None
    assert not np.array_equal(stored.box.mean, fitted.box.mean)
    for network, other in zip(stored.box.networks, fitted.box.networks, strict=True):
        assert np.array_equal(network, other)
    assert (stored.weight, stored.mean, stored.scale) == (fitted.weight, fitted.mean, fitted.scale)
    assert stored.presence is not None
    assert "similarity" not in stored.weight  # each model has cosines of its own


def test_a_precision_takes_the_margin(made: tuple[Path, str]) -> None:
    dataset = open_dataset(made[0])
    margin = dataset.score_margin
    everything = count_scores(dataset, select(dataset, RegionChoice(), {}))
    scores = sorted(
        (region["score"] for row in rows_of(made[0]) for region in row["annotations"]), reverse=True
    )
    assert everything.precisions[-1] == pytest.approx(max(0.0, np.mean(scores) - margin), rel=1e-4)
    wanted = everything.highest_precision - 0.01
    chosen = select(dataset, RegionChoice(precision=wanted), {})
    kept = [score for score in scores if score >= chosen.min_score - 1e-6]
    assert np.mean(kept) >= (wanted + margin) * (1 - 1e-4)


@pytest.mark.slow
def test_a_run_that_goes_on_takes_what_was_decided(
    made: tuple[Path, str], drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_aloud(generic(drawn, out))
    rows = rows_of(out)
    assert_alike(rows, rows_of(made[0]))
    shard, *_ = sorted((out / "data").iterdir())
    shard.unlink()
    run_aloud(generic(drawn, out))
    assert_alike(rows, rows_of(out))
    assert manifest_of(out)["calibration"] == manifest_of(made[0])["calibration"]


def test_the_file_may_be_named(made: tuple[Path, str], drawn: Path, tmp_path: Path) -> None:
    _, text = run_aloud(generic(drawn, tmp_path / "out", calibration=str(GENERIC_FILE)))
    assert "Scores are estimated" in text
    assert_alike(rows_of(tmp_path / "out"), rows_of(made[0]))


def test_without_presence_it_is_not_used_and_the_run_says_why(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_fit, "LEAST_AREA", 1.1)  # as for weights that were not trained
    _, text = run_aloud(generic(drawn, tmp_path / "out"))
    assert "presence is not known" in text
    assert "needs presence, which is not known" in text
    assert "Maps are cut at 0.2" in text
    manifest = manifest_of(tmp_path / "out")
    assert manifest["calibration"] is None
    assert "estimated_margin" not in manifest["scores"]


def test_other_settings_of_regions_are_refused(drawn: Path, tmp_path: Path) -> None:
    with expect_error(ConfigError, key="regions.calibration"):
        run_aloud(generic(drawn, tmp_path / "out", smooth_patches=2.0))
    assert find_generic_calibration(RegionsConfig(calibration="generic", exponent=2.0)) is not None


def test_without_a_run_it_is_refused_and_the_one_of_a_dataset_taken(
    made: tuple[Path, str], drawn: Path
) -> None:
    image = next((drawn / "images").iterdir())
    with expect_error(ConfigError, key="regions.calibration"):
        Locator("demo", regions={**PLAIN, "calibration": "generic"})
    settings = {**PLAIN, "calibration": "generic", "threshold": "null"}
    changes = [word for key, value in settings.items() for word in ("--set", f"regions.{key}={value}")]
    code, _, errors = called("models", "check", "demo", *changes)
    assert code == 2
    assert_message(errors)
    phrases = ["a red ball", "a blue tree"]
    asked = {"calibration": str(made[0] / "presence.json"), **PLAIN}
    located = Locator("demo", regions=asked)(image, phrases)
    assert not np.isnan(located.presences).any()


def test_a_source_without_heat_maps_refuses_it(drawn: Path, tmp_path: Path) -> None:
    config = config_of(
        drawn, source={"kind": "grid"}, regions={"calibration": "generic"}, output={"path": str(tmp_path)}
    )
    with expect_error(ConfigError, key="regions.calibration"):
        run_aloud(config)


@pytest.mark.slow
def test_a_review_corrects_it(made: tuple[Path, str], drawn: Path, tmp_path: Path) -> None:
    """The fit takes boxes, cut and presence of the dataset, and then no score is an estimate."""
    dataset = copy_of(made[0], tmp_path)
    assert review(dataset, drawn / "truth.json", 120, drags=True) > 60
    file = tmp_path / "reviewed.json"
    out = printed("calibrate", dataset, "--reviews", "--out", file)
    assert "calibration error" in out
    assert "boxes: the dataset's boxes stay" in out
    reviewed, stored = read_calibration(file), read_calibration(dataset / "presence.json")
    assert reviewed.margin is None
    assert not reviewed.is_generic
    assert reviewed.made_from["reviews"] > 60
    assert reviewed.cut == stored.cut
    assert reviewed.box is not None
    assert stored.box is not None
    assert np.array_equal(reviewed.box.mean, stored.box.mean)
    assert reviewed.presence is not None
    again, text = run_aloud(generic(drawn, tmp_path / "again", calibration=str(file)))
    assert "Scores are calibrated" in text
    assert "Scores are estimated" not in text
    assert "estimated_margin" not in manifest_of(again)["scores"]


@pytest.mark.slow
def test_a_truth_corrects_it(made: tuple[Path, str], drawn: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    code, _, errors = called("calibrate", made[0], "--truth", drawn / "truth.json", "--out", file)
    assert code == 0, errors
    own = read_calibration(file)
    assert own.margin is None
    assert not own.is_generic


def test_inputs_of_each_source_are_standardised_by_its_own_moments() -> None:
    rng = np.random.default_rng(0)
    objects: Any = [SimpleNamespace(source=source) for source in ("one", "one", "other", "other", "other")]
    inputs = rng.normal(3.0, 2.0, (10, 4)) + np.tile([0, 0, 50, 50, 50], 2)[:, None]
    standardised = _standardise(inputs, objects)
    for rows in ([0, 1, 5, 6], [2, 3, 4, 7, 8, 9]):
        assert standardised[rows].mean(axis=0) == pytest.approx(0.0, abs=0.02)
        assert standardised[rows].std(axis=0) == pytest.approx(1.0, rel=0.02)
