"""`phrasebox tune`: its figures are those of `eval`, and what is better stays."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.commands.tune import print_tuning
from pipeline.config import RunConfig, load_config, override
from pipeline.evaluate import calibrate, presence
from pipeline.evaluate.evaluation import evaluation_of
from pipeline.evaluate.tune import FIGURES, MARGIN, TRIED, tuned, write_settings
from pipeline.run import run
from pipeline.scenes import write_scenes
from stages.contract.errors import ConfigError, InputError
from tests.pipeline.commands.evaluated import QUIET, config_of


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, 16, 47)
    return folder


@pytest.fixture(scope="module")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(run(config_of(drawn, tmp_path_factory.mktemp("made"), regions={**PLAIN, "calibration": "none"})))


PLAIN = {"upsample": "linear", "rule": "otsu"}
"""Settings that can be improved, which those that `demo` brings cannot."""

SOME = {
    "contrast": TRIED["contrast"][:2],
    "rule": ({"regions.rule": "quantile", "regions.quantile": 0.98}, {"regions.rule": "otsu"}),
    "edges": ({"regions.upsample": "guided", "regions.rule": "fixed", "regions.threshold": 0.45},),
}


@pytest.fixture(scope="module")
def figures(dataset: Path, drawn: Path) -> dict[str, Any]:
    return tuned(dataset, drawn / "truth.json", QUIET, tried=SOME)


def test_the_start_and_the_best_are_what_eval_measures(
    figures: dict[str, Any], dataset: Path, drawn: Path, tmp_path: Path
) -> None:
    write_settings(figures["best"], tmp_path / "best.yaml")
    made = json.loads((dataset / "dataset.json").read_text())["config"]
    changed = override({**made, "output": {"path": str(tmp_path / "again")}}, [])
    again = load_config(tmp_path / "best.yaml", [
        f"input={json.dumps(made['input'])}", f"output.path={tmp_path / 'again'}", "engine.kind=inline",
        "model.name=demo", "regions.calibration=none",
    ])  # fmt: skip
    assert again.regions != changed.regions
    for measured, path in ((figures["start"], dataset), (figures["figures"], Path(run(again)))):
        wanted = evaluation_of(path, drawn / "truth.json", QUIET)["metrics"]
        for name in FIGURES[:-1]:
            assert measured[name] == pytest.approx(wanted[name]["value"], abs=1e-6), name


def test_the_start_has_the_dataset_s_calibration_and_a_setting_without_one_is_measured_without(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(presence, "FEWEST_PHRASES", 1)
    truth, file, wanted_rule = drawn / "truth.json", tmp_path / "c.json", {**PLAIN, "rule": "fitted"}
    plain = run(config_of(drawn, tmp_path / "plain", regions=wanted_rule))
    calibrate.write_calibration(Path(plain), truth, file, QUIET)
    fitted = Path(run(config_of(drawn, tmp_path / "fitted", regions={**wanted_rule, "calibration": str(file)})))
    rules = ({"regions.rule": "fitted"}, {"regions.rule": "mean"}, {"regions.smooth_patches": 1.0})
    found = tuned(fitted, truth, QUIET, tried={"rule": rules})
    wanted = evaluation_of(fitted, truth, QUIET)["metrics"]
    start, same, mean, _ = (found["start"], *(step["figures"] for step in found["steps"]))
    for name in FIGURES[:-1]:
        assert start[name] == pytest.approx(wanted[name]["value"], abs=1e-6), name
    assert start == same
    assert start["box_recall"] > mean["box_recall"]
    assert found["best"] == {}
    file.write_text(json.dumps({**json.loads(file.read_text()), "bias": 1.0}))
    with pytest.raises(ConfigError, match=r"c\.json is no longer the one that .*fitted was made with"):
        tuned(fitted, truth, QUIET, tried={})


def test_a_setting_without_regions_has_no_precision_and_is_not_kept(dataset: Path, drawn: Path) -> None:
    nothing = {"regions.rule": "quantile", "regions.quantile": 1.0, "regions.upsample": "linear"}
    found = tuned(dataset, drawn / "truth.json", QUIET, by="precision", tried={"rule": (nothing,)})
    assert found["steps"][0]["figures"]["precision"] is None
    assert found["best"] == {}


def test_what_is_better_stays_and_is_tried_with_what_stays(figures: dict[str, Any]) -> None:
    assert [step["changes"] for step in figures["steps"]] == [dict(each) for group in SOME.values() for each in group]
    best = figures["start"]["box_recall"]
    for group in SOME:
        for step in figures["steps"]:
            if step["group"] == group and step["kept"]:
                best = max(best, step["figures"]["box_recall"])
    assert best == figures["figures"]["box_recall"] >= figures["start"]["box_recall"] + MARGIN
    quantile, otsu, guided = figures["steps"][2:]
    assert quantile["figures"]["box_recall"] < otsu["figures"]["box_recall"]
    assert (quantile["kept"], guided["kept"]) == (False, True)
    assert figures["best"]["regions.upsample"] == "guided"


def test_the_table_names_every_try(figures: dict[str, Any]) -> None:
    printed = StringIO()
    print_tuning(figures, Console(file=printed, width=100))
    text = printed.getvalue()
    for words in ("the dataset's settings", "contrast: 0.25", "rule: quantile 0.98", "edges: guided fixed 0.45 *"):
        assert words in text
    assert f"{figures['start']['box_recall']:.3f}" in text


def test_a_truth_that_was_drawn_before_the_images_were_resized(dataset: Path, drawn: Path, tmp_path: Path) -> None:
    """Twice as wide and three times as high: the same figures, once the truth is scaled."""
    truth = json.loads((drawn / "truth.json").read_text())
    for image in truth["images"]:
        image["width"], image["height"] = 2 * image["width"], 3 * image["height"]
    for thing in truth["annotations"]:
        x, y, w, h = thing["bbox"]
        thing["bbox"] = [2 * x, 3 * y, 2 * w, 3 * h]
        thing.pop("segmentation", None)
    (tmp_path / "large.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match=r"the ground truth is for 720x1080.*--resized"):
        evaluation_of(dataset, tmp_path / "large.json", QUIET, maps=False)
    scaled = evaluation_of(dataset, tmp_path / "large.json", QUIET, maps=False, resized=True)["metrics"]
    plain = evaluation_of(dataset, drawn / "truth.json", QUIET, maps=False)["metrics"]
    assert scaled["box_recall"] == plain["box_recall"]
    assert scaled["box_iou"]["value"] == pytest.approx(plain["box_iou"]["value"])


def test_a_figure_that_the_truth_does_not_have_is_refused(dataset: Path, drawn: Path, tmp_path: Path) -> None:
    truth = json.loads((drawn / "truth.json").read_text())
    for thing in truth["annotations"]:
        thing.pop("segmentation", None)
    (tmp_path / "boxes.json").write_text(json.dumps(truth))
    with pytest.raises(ConfigError, match="--by mask_iou"):
        tuned(dataset, tmp_path / "boxes.json", QUIET, by="mask_iou", tried={})


def test_every_value_that_is_tried_is_one_of_the_configuration(drawn: Path, tmp_path: Path) -> None:
    values = config_of(drawn, tmp_path).model_dump(mode="json")
    for candidates in TRIED.values():
        for changes in candidates:
            changed = override(json.loads(json.dumps(values)), [f"{key}={value}" for key, value in changes.items()])
            assert isinstance(changed, RunConfig)
