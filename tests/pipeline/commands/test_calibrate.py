"""`phrasebox calibrate`, and scores that a calibration makes."""

import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.commands.calibrate import calibrate as calibrate_command
from pipeline.commands.calibrate import print_calibration
from pipeline.commands.tables import print_evaluation
from pipeline.dataset.validate import validate
from pipeline.evaluate import foreign_phrases, truth_fit
from pipeline.evaluate.cut_fit import fit_cut_to_rows
from pipeline.evaluate.estimates import Estimate
from pipeline.evaluate.evaluation import evaluate_dataset
from pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from pipeline.evaluate.matching import queries_of
from pipeline.evaluate.truth_fit import CalibrationFigures, write_calibration
from pipeline.run import run
from pipeline.steps import build_steps
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import HeatMap, Phrase, Record, Sample
from stages.regions.config import RegionsConfig
from stages.regions.maker import RegionMaker
from stages.regions.score import read_calibration
from stages.truth.ground_truth import TruthImage, TruthTarget
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


@pytest.mark.slow
def test_a_fitted_calibration_makes_the_scores_of_the_next_run(drawn: Path, tmp_path: Path) -> None:
    """Settings that the shipped calibration is not for, so that the first run has none.

    Without presence, so that the scores are about phrases that are there, as all are here.
    """
    values: Json = {"explain": {"blocks": 3}, "regions": {"refine": "none", "calibration": "none"}}
    plain, text = run_aloud(config_of(drawn, tmp_path / "plain", **values))
    assert "Scores are not calibrated" in text
    figures = write_calibration(
        open_evaluation_set(plain, drawn / "truth.json"), tmp_path / "c.json", QUIET, presence=False
    )
    assert figures.regions >= 100
    with_file = {**values, "regions": {**values["regions"], "calibration": str(tmp_path / "c.json")}}
    fitted, text = run_aloud(config_of(drawn, tmp_path / "fitted", **with_file))
    assert "score:" not in text
    before = evaluate_dataset(open_evaluation_set(plain, drawn / "truth.json"), QUIET, []).figures
    after = evaluate_dataset(open_evaluation_set(fitted, drawn / "truth.json"), QUIET, []).figures
    assert after.metrics["mask_iou"] == before.metrics["mask_iou"]
    assert after.calibration_error.value < 0.15 < before.calibration_error.value
    hit_rate = after.thresholds[0].precision.value
    assert sum(scores_of(fitted)) / len(scores_of(fitted)) == pytest.approx(hit_rate, abs=0.02)
    assert manifest_of(fitted)["calibration"] is not None
    manifest = manifest_of(plain)
    assert manifest["calibration"] is None
    assert read_calibration(tmp_path / "c.json").precisions == [manifest["config"]["model"]["precision"]]
    assert "only ranks" in (plain / "README.md").read_text()
    assert "calibrated" in (fitted / "README.md").read_text()
    print_calibration(figures, tmp_path / "c.json", Console(file=(printed := StringIO()), width=200))
    assert f"{figures.calibration_error.value:.3f}" in printed.getvalue()
    # It is for three blocks only, and says so.
    with expect_error(ConfigError):
        build_steps(config_of(drawn, tmp_path / "other", regions=with_file["regions"]))


@pytest.mark.parametrize(("low", "is_better"), [(0.001, True), (0.0, False), (-0.1, False)])
def test_the_command_that_uses_a_calibration_is_for_a_better_one(low: float, is_better: bool) -> None:
    figures = CalibrationFigures(
        matched={"images": 10, "by_stem": 0, "ambiguous": 0},
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


@pytest.mark.parametrize("refine", ["none", pytest.param("grabcut", marks=pytest.mark.slow)])
def test_stored_maps_give_the_calibration_of_computed_ones(
    scenes_folder, tmp_path, monkeypatch, refine
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(foreign_phrases, "FEWEST_PHRASES", 1)
    scenes = Path(shutil.copytree(scenes_folder, tmp_path / "scenes"))
    next((scenes / "images").iterdir()).unlink()
    dataset = run(config_of(scenes, tmp_path / "dataset", regions={"refine": refine}), QUIET)
    results = {}
    for name, settings in (("stored", []), ("computed", ["model.device=cpu"])):
        figures = write_calibration(
            open_evaluation_set(dataset, scenes / "truth.json", settings), tmp_path / f"{name}.json", QUIET
        )
        results[name] = (figures, (tmp_path / f"{name}.json").read_text())
    assert results["stored"] == results["computed"]


def test_the_same_region_for_the_phrase_of_a_second_caption_is_judged_once(
    scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    queries = EvaluationSet.queries
    monkeypatch.setattr(EvaluationSet, "queries", lambda *given: [*queries(*given)] * 2)
    dataset = run(config_of(scenes_folder, tmp_path / "dataset"), QUIET)
    figures = write_calibration(
        open_evaluation_set(dataset, scenes_folder / "truth.json"),
        tmp_path / "c.json",
        QUIET,
        presence=False,
    )
    assert figures.calibration_error.n == figures.regions
    monkeypatch.setattr(EvaluationSet, "queries", queries)
    again = write_calibration(
        open_evaluation_set(dataset, scenes_folder / "truth.json"),
        tmp_path / "c.json",
        QUIET,
        presence=False,
    )
    assert again.regions == figures.regions


def test_the_embedded_models_own_calibration_is_used_with_its_settings_only(
    drawn: Path, tmp_path: Path
) -> None:
    configs = [config_of(drawn, tmp_path, regions=regions) for regions in ({}, CONTOUR, GRABCUT)]
    calibrations = {build_steps(config).calibration_digest for config in configs}
    assert None not in calibrations
    assert len(calibrations) == 3
    assert build_steps(config_of(drawn, tmp_path, regions={"calibration": "none"})).calibration is None
    assert build_steps(config_of(drawn, tmp_path, regions={"rule": "mean"})).calibration is None
    assert (
        build_steps(config_of(drawn, tmp_path, explain={"kind": "grad_eclip", "blocks": 1})).calibration
        is None
    )


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


def test_a_text_that_names_two_things_is_fitted_to_each_with_its_own_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The man of the first caption is the cook, top left; that of the second the boy, bottom right."""
    heat = np.full((3, 8, 8), 0.02, np.float32)
    heat[0, :3, :3] = heat[0, 5:, 5:] = heat[1, :3, :3] = heat[2, 5:, 5:] = 1.0
    texts = ("man", "cook", "boy")
    maps = [
        HeatMap(text=text, values=values, similarity=0.3) for text, values in zip(texts, heat, strict=True)
    ]
    heads = [("man", 0), ("cook", 0), ("man", 1), ("boy", 1)]
    phrases = [Phrase(text=text, head=text, caption_index=c, start=0, end=len(text)) for text, c in heads]
    captions = ("a man who is a cook", "a man who is a boy")
    sample = Sample(sample_id="1", source="1", captions=captions)
    record = replace(
        Record.start(sample), width_px=80, height_px=80, phrases=tuple(phrases), heat_maps=tuple(maps)
    )
    boxes = ((0.0, 0.0, 30.0, 30.0), (50.0, 50.0, 30.0, 30.0))
    targets = [
        TruthTarget(phrase="man", match="phrase", boxes_xywh_px=(box,), caption=caption)
        for box, caption in zip(boxes, captions, strict=True)
    ]
    image = TruthImage(file_name="1.jpg", width_px=80, height_px=80, targets=tuple(targets))
    row = {"id": 1, "file_name": "1.jpg", "width": 80, "height": 80, "captions": captions, "error": None}
    judged = SimpleNamespace(queries=lambda row, phrases: queries_of(1, row, image, frozenset(), phrases))
    monkeypatch.setattr(RegionMaker, "groups_of", lambda *_: (0, 0, 1, 1))
    fits: list[Any] = []

    def note(features: Any, right: Any) -> Any:
        fits.append((features, right))
        raise ValueError("noted")

    monkeypatch.setattr("pipeline.evaluate.cut_fit.fit_cut", note)
    with expect_error(InputError):
        fit_cut_to_rows(
            RegionsConfig(group="things", upsample="linear"), [({**row, "annotations": []}, record)], judged
        )  # type: ignore[arg-type]
    ((_, (cook, boy)),) = fits
    assert cook.any()
    assert cook.tolist() == boy.tolist(), "the things differ in their place alone"


def test_too_few_regions_are_refused(
    inline_dataset: Path, scenes_folder: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 10_000)
    with expect_error(InputError):
        write_calibration(
            open_evaluation_set(inline_dataset, scenes_folder / "truth.json"), tmp_path / "c.json", QUIET
        )
    assert not (tmp_path / "c.json").exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    """Neither truth nor dataset is looked at: there is none."""
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "c.json", Path("/proc/none/c.json")):
        with expect_error(ConfigError):
            calibrate_command(tmp_path / "none", out, tmp_path / "none.json")
    with expect_error(InputError):
        calibrate_command(tmp_path / "none", tmp_path / "new" / "c.json", tmp_path / "none.json")
    assert not (tmp_path / "new").exists(), "a rejected calibration leaves no folder"


def test_absent_phrases_are_found_out_once_presence_is_fitted(
    scenes_folder: Path, tmp_path, monkeypatch
) -> None:
    """On the scenes that it was fitted on: what is tested is the way from the fit to the rows and figures."""
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(foreign_phrases, "FEWEST_PHRASES", 1)
    truth = scenes_folder / "truth.json"
    file = tmp_path / "c.json"
    dataset = run(config_of(scenes_folder, tmp_path / "plain", regions={"calibration": "none"}), QUIET)
    unknown = evaluate_dataset(open_evaluation_set(dataset, truth), QUIET, ["absent"]).absent
    assert unknown is not None
    assert unknown.by["presence"] is None
    assert unknown.by["similarity"]["auc"].value > 0.8
    figures = write_calibration(open_evaluation_set(dataset, truth), file, QUIET)
    assert figures.presence["presence_auc"].value > 0.8
    regions = {"calibration": str(file), "min_presence": 0.5}
    fitted = run(config_of(scenes_folder, tmp_path / "fitted", regions=regions), QUIET)
    assert list(validate(fitted)) == []
    evaluation = evaluate_dataset(open_evaluation_set(fitted, truth), QUIET, ["absent"])
    assert evaluation.absent is not None
    by_way = evaluation.absent.by
    assert by_way["similarity"] == unknown.by["similarity"], "presence takes nothing from the cosine"
    assert by_way["presence"]["auc"].value > 0.9
    assert by_way["presence"]["il_mcc"].value > 0.7
    rows = rows_of(fitted)
    assert min(annotation["presence"] for row in rows for annotation in row["annotations"]) >= 0.5
    assert all(entry["presence"] < 0.5 for row in rows for entry in row["absent"])
    assert all(a["score"] <= a["presence"] for row in rows for a in row["annotations"])
    printed = StringIO()
    print_evaluation(evaluation, Console(file=printed, width=200))
    assert f"{by_way['presence']['cgf1'].value:.3f}" in printed.getvalue()
    again = write_calibration(open_evaluation_set(fitted, truth), tmp_path / "again.json", QUIET)
    assert (figures.replaces, again.replaces) == (False, True)
    write_calibration(open_evaluation_set(dataset, truth), tmp_path / "plain.json", QUIET, presence=False)
    assert read_json(tmp_path / "plain.json")["presence"] is None


@pytest.mark.slow
def test_a_calibration_says_where_to_cut_if_the_rule_asks_for_it(drawn: Path, tmp_path: Path) -> None:
    """The run without one cuts at a fixed share, and says so."""
    regions = {"rule": "fitted", "upsample": "linear", "calibration": "none"}
    plain, text = run_aloud(config_of(drawn, tmp_path / "plain", explain={"blocks": 3}, regions=regions))
    assert "Maps are cut at 0.2 of their highest heat" in text
    assert manifest_of(plain)["config"]["regions"]["rule"] == "fixed"
    write_calibration(
        open_evaluation_set(plain, drawn / "truth.json"), tmp_path / "c.json", QUIET, presence=False
    )
    cut = read_json(tmp_path / "c.json")["cut"]
    assert set(cut) == {"weight", "mean", "scale", "usual"}
    assert (
        {phrase["head"] for row in rows_of(plain) for phrase in row["annotations"]}
        >= set(cut["usual"])
        != set()
    )
    regions["calibration"] = str(tmp_path / "c.json")
    fitted, text = run_aloud(config_of(drawn, tmp_path / "fitted", explain={"blocks": 3}, regions=regions))
    assert "highest heat" not in text
    before = evaluate_dataset(open_evaluation_set(plain, drawn / "truth.json"), QUIET, []).figures
    after = evaluate_dataset(open_evaluation_set(fitted, drawn / "truth.json"), QUIET, []).figures
    assert after.metrics["box_recall"].value > before.metrics["box_recall"].value + 0.01
