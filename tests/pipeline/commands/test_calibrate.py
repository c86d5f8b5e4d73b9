"""`phrasebox calibrate`, and scores that a calibration makes."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from phrasebox.pipeline.calibrate import presence as presence_fit
from phrasebox.pipeline.calibrate import truth_fit
from phrasebox.pipeline.calibrate.truth_fit import CalibrationFigures, write_calibration
from phrasebox.pipeline.commands.calibrate import calibrate as calibrate_command
from phrasebox.pipeline.commands.calibrate import print_calibration
from phrasebox.pipeline.commands.tables import print_evaluation
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.evaluate.estimates import Estimate
from phrasebox.pipeline.evaluate.evaluation import Figures, evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.scores.score import read_calibration
from tests.build.datasets import Json, manifest_of
from tests.build.files import read_json
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import QUIET, config_of, drawing, run_aloud
from tests.pipeline.light import rows_of

CONTOUR = {"rule": "otsu", "upsample": "linear"}
GRABCUT = {**CONTOUR, "refine": "grabcut"}

drawn = drawing(60, 41)


def scores_of(dataset: Path) -> list[float]:
    return [annotation["score"] for row in rows_of(dataset) for annotation in row["annotations"]]


def fitted_to(dataset: Path, scenes: Path, out: Path) -> CalibrationFigures:
    """A calibration of the scores of a dataset; its figures."""
    return write_calibration(open_evaluation_set(dataset, scenes / "truth.json"), out, QUIET)


def figures_of(dataset: Path, scenes: Path) -> Figures:
    return evaluate_dataset(open_evaluation_set(dataset, scenes / "truth.json"), QUIET, []).figures


@pytest.mark.slow
def test_a_fitted_calibration_makes_the_scores_of_the_next_run(drawn: Path, tmp_path: Path) -> None:
    """Settings that the shipped calibration is not for, so that the first run has none."""
    values: Json = {"explain": {"blocks": 3}, "regions": {"refine": "none", "calibration": "none"}}
    plain, text = run_aloud(config_of(drawn, tmp_path / "plain", **values))
    assert "Scores are not calibrated" in text
    file = tmp_path / "c.json"
    assert fitted_to(plain, drawn, file).regions >= 100
    values["regions"]["calibration"] = str(file)
    fitted, _ = run_aloud(config_of(drawn, tmp_path / "fitted", **values))
    before, after = (figures_of(dataset, drawn) for dataset in (plain, fitted))
    assert after.metrics["mask_iou"] == before.metrics["mask_iou"]
    assert after.calibration_error.value < 0.15 < before.calibration_error.value
    hit_rate = after.thresholds[0].precision.value
    assert sum(scores_of(fitted)) / len(scores_of(fitted)) == pytest.approx(hit_rate, abs=0.02)
    assert read_calibration(file).precisions == [manifest_of(plain)["config"]["model"]["precision"]]
    # It is for three blocks only, and says so.
    with expect_error(ConfigError, key="regions.calibration"):
        build_steps(config_of(drawn, tmp_path / "other", regions=values["regions"]))


@pytest.mark.parametrize(("low", "is_better"), [(0.001, True), (0.0, False)])
def test_the_command_that_uses_a_calibration_is_for_a_better_one(low: float, is_better: bool) -> None:
    figures = CalibrationFigures(
        matched={"images": 10, "ambiguous": 0},
        regions=200,
        right=50,
        presence={},
        box_gain=Estimate(value=0.02, low=low, high=0.04),
        calibration_error=Estimate(),
        replaces=False,
        gain=Estimate(value=0.01, low=low, high=0.02, n=200),
    )
    print_calibration(figures, Path("c.json"), Console(file=(printed := StringIO()), width=200))
    *_, boxes, place, verdict = printed.getvalue().splitlines()
    assert ("learned boxes are used" in boxes) == is_better
    assert ("regions.calibration=c.json" in place) == is_better
    assert verdict.startswith("Verdict: use it. " if is_better else "Verdict: do not use it")


def test_the_same_region_for_the_phrase_of_a_second_caption_is_judged_once(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)
    once = fitted_to(inline_dataset, scenes_folder, tmp_path / "c.json")
    queries = EvaluationSet.queries
    monkeypatch.setattr(EvaluationSet, "queries", lambda *given: [*queries(*given)] * 2)
    twice = fitted_to(inline_dataset, scenes_folder, tmp_path / "c.json")
    assert twice.regions == once.regions == once.calibration_error.n


def test_the_embedded_models_own_calibration_is_used_with_its_settings_only(
    drawn: Path, tmp_path: Path
) -> None:
    calibrations = {
        build_steps(config_of(drawn, tmp_path, regions=regions)).calibration_digest
        for regions in ({}, CONTOUR, GRABCUT, {"rule": "mean"}, {"calibration": "none"})
    }
    assert len(calibrations) == 4, "three of them, and none for the last two"
    assert None in calibrations


@pytest.mark.slow
@pytest.mark.parametrize("regions", [{}, CONTOUR, GRABCUT])
def test_the_shipped_calibrations_are_honest_on_scenes_they_were_not_fitted_on(
    drawn, tmp_path, regions
) -> None:
    dataset = run(config_of(drawn, tmp_path / "dataset", regions=regions), QUIET)
    evaluation = evaluate_dataset(
        open_evaluation_set(dataset, drawn / "truth.json"), QUIET, ["maps", "absent"]
    )
    scores = evaluation.figures.scores
    assert evaluation.absent is not None
    assert evaluation.absent.ece.value < 0.15
    areas = {way: evaluation.absent.by[way]["auc"].value for way in ("presence", "similarity")}
    assert areas["presence"] > areas["similarity"] > 0.9
    assert scores["score"].value < scores["similarity"].value
    assert scores["score"].value < scores["mean_heat"].value


def test_too_few_regions_are_refused(
    inline_dataset: Path, scenes_folder: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 10_000)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)
    with expect_error(InputError):
        fitted_to(inline_dataset, scenes_folder, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    """Neither truth nor dataset is looked at: there is none."""
    for out in (tmp_path, Path("/proc/none/c.json")):
        with expect_error(ConfigError, key="--out"):
            calibrate_command(tmp_path / "none", out, tmp_path / "none.json")
    with expect_error(InputError):
        calibrate_command(tmp_path / "none", tmp_path / "new" / "c.json", tmp_path / "none.json")
    assert not (tmp_path / "new").exists(), "a rejected calibration leaves no folder"


@pytest.mark.slow
def test_absent_phrases_are_found_out_once_presence_is_fitted(
    scenes_folder: Path, tmp_path, monkeypatch
) -> None:
    """On the scenes that it was fitted on: what is tested is the way from the fit to the rows and figures."""
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 1)
    truth = scenes_folder / "truth.json"
    file = tmp_path / "c.json"
    dataset = run(config_of(scenes_folder, tmp_path / "plain", regions={"calibration": "none"}), QUIET)
    unknown = evaluate_dataset(open_evaluation_set(dataset, truth), QUIET, ["absent"]).absent.by
    assert unknown["presence"] is None
    figures = fitted_to(dataset, scenes_folder, file)
    assert figures.presence["presence_auc"].value > 0.8
    regions = {"calibration": str(file), "min_presence": 0.5}
    fitted = run(config_of(scenes_folder, tmp_path / "fitted", regions=regions), QUIET)
    assert list(validate(fitted)) == []
    evaluation = evaluate_dataset(open_evaluation_set(fitted, truth), QUIET, ["absent"])
    by_way = evaluation.absent.by
    assert by_way["similarity"] == unknown["similarity"], "presence takes nothing from the cosine"
    assert by_way["presence"]["auc"].value > 0.9
    assert by_way["presence"]["il_mcc"].value > 0.7
    for row in rows_of(fitted):
        assert all(entry["presence"] < 0.5 for entry in row["absent"])
        assert all(region["presence"] >= max(0.5, region["score"]) for region in row["annotations"])
    printed = StringIO()
    print_evaluation(evaluation, Console(file=printed, width=200))
    assert f"{by_way['presence']['cgf1'].value:.3f}" in printed.getvalue()
    again = fitted_to(fitted, scenes_folder, tmp_path / "again.json")
    assert (figures.replaces, again.replaces) == (False, True)


@pytest.mark.slow
def test_a_calibration_says_where_to_cut_if_the_rule_asks_for_it(drawn: Path, tmp_path: Path) -> None:
    """The run without one cuts at a fixed share, and says so."""
    regions = {"rule": "fitted", "upsample": "linear", "calibration": "none"}
    plain, text = run_aloud(config_of(drawn, tmp_path / "plain", explain={"blocks": 3}, regions=regions))
    assert "Maps are cut at 0.2 of their highest heat" in text
    assert manifest_of(plain)["config"]["regions"]["rule"] == "fixed"
    fitted_to(plain, drawn, tmp_path / "c.json")
    heads = {phrase["head"] for row in rows_of(plain) for phrase in row["annotations"]}
    assert heads >= read_json(tmp_path / "c.json")["cut"]["usual"].keys() != set()
    regions["calibration"] = str(tmp_path / "c.json")
    fitted, text = run_aloud(config_of(drawn, tmp_path / "fitted", explain={"blocks": 3}, regions=regions))
    assert "highest heat" not in text
    before, after = (figures_of(dataset, drawn).metrics["box_recall"].value for dataset in (plain, fitted))
    assert after > before + 0.01
