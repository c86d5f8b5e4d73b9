"""`phrasebox calibrate --reviews` and `stats --reviews`, from a run over drawn scenes to the next one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.commands.tables import KINDS
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.reviews import REVIEWS_FILE, RegionKey, Review
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.evaluate.evaluation import Figures, evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.evaluate.reviews import population_of, sample_for_review
from phrasebox.pipeline.run.run import run
from phrasebox.pipeline.run.steps import build_steps
from tests.build.datasets import Json, rows_of
from tests.build.files import read_json
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import QUIET, called, config_of, drawing, printed, run_aloud
from tests.pipeline.reviewer import review

SETTINGS: Json = {"explain": {"blocks": 3}}  # which no shipped calibration is for


drawn = drawing(36, 41)


@pytest.fixture(scope="module")
def answered(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose scores only rank, with answers about most of its regions by two people."""
    plain = {**SETTINGS, "regions": {"calibration": "none"}}
    dataset = run(config_of(drawn, tmp_path_factory.mktemp("run") / "plain", **plain), QUIET)
    assert review(dataset, drawn / "truth.json", 120) > 60
    assert review(dataset, drawn / "truth.json", 30, reviewer="bob") > 20
    return dataset


@pytest.fixture
def copy(answered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(answered, tmp_path / "copy"))


def figures_of(dataset: Path, scenes: Path) -> Figures:
    return evaluate_dataset(open_evaluation_set(dataset, scenes / "truth.json"), QUIET, []).figures


@pytest.mark.slow
def test_a_run_with_the_fitted_calibration_has_scores_that_are_probabilities(answered, tmp_path) -> None:
    file = tmp_path / "c.json"
    out = printed("calibrate", answered, "--reviews", "--out", file)
    assert "boxes:" not in out, "nobody dragged one"
    assert f"use it with --set regions.calibration={file}" in out
    verdict = "Verdict: use it: the mean squared error of the scores falls by 0."
    assert out.splitlines()[-1].startswith(verdict)
    others = tmp_path / "others"
    write_scenes(others, 25, 42)
    errors = []
    for name, calibration in (("fitted", str(file)), ("plain", "none")):
        values = {**SETTINGS, "regions": {"calibration": calibration}}
        dataset = run(config_of(others, tmp_path / name, **values), QUIET)
        errors.append(figures_of(dataset, others).calibration_error.value)
    assert errors[0] < 0.15 < errors[1]
    made_from = read_json(file)["made_from"]
    assert made_from["answers"]["right"] + made_from["answers"]["wrong"] == made_from["reviews"] > 60
    assert set(made_from["reviewers"]) == {"ann", "bob"}
    assert made_from["captions"] == [{"captions": 1.0, "mentions": pytest.approx(1, abs=0.1)}]
    card = (tmp_path / "fitted" / "README.md").read_text()
    assert f"{made_from['reviews']} reviewed regions of the dataset plain" in card


@pytest.mark.slow
def test_a_calibration_that_is_corrected_here_is_not_doubted_here(drawn, tmp_path, monkeypatch) -> None:
    """The fit before the answers saw other images, so that the first run doubts it."""
    monkeypatch.setattr("phrasebox.pipeline.run.domain_shift.FEWEST_FITTED", 10)
    shipped = build_steps(config_of(drawn, tmp_path)).calibration
    assert shipped is not None
    images = shipped.presence.images
    elsewhere = images.model_copy(update={"directions": 0.5 * images.directions})
    other = shipped.presence.model_copy(update={"images": elsewhere})
    (tmp_path / "other.json").write_text(shipped.model_copy(update={"presence": other}).to_json())
    doubt = "show other objects than those that the calibration was fitted to"
    config = config_of(drawn, tmp_path / "before", regions={"calibration": str(tmp_path / "other.json")})
    dataset, text = run_aloud(config)
    assert doubt in text
    review(dataset, drawn / "truth.json", 120)
    command = ("calibrate", dataset, "--reviews", "--out", tmp_path / "c.json")
    code, _, err = called(*command, "--set", "regions.calibration=auto")
    assert (code, "another calibration" in err) == (2, True), err
    assert "absent_share" in printed(*command), "presence was fitted"
    config = config_of(drawn, tmp_path / "after", regions={"calibration": str(tmp_path / "c.json")})
    corrected, text = run_aloud(config)
    assert "Scores are calibrated" in text
    assert doubt not in text
    assert figures_of(corrected, drawn).calibration_error.value < 0.12


@pytest.mark.slow
def test_answers_count_once_however_often_a_calibration_is_fitted(drawn, answered, tmp_path) -> None:
    file = tmp_path / "c.json"
    printed("calibrate", answered, "--reviews", "--out", file)
    config = config_of(drawn, tmp_path / "again", **SETTINGS, regions={"calibration": str(file)})
    again = run(config, QUIET)
    shutil.copy(answered / REVIEWS_FILE, again)
    command = ("calibrate", again, "--reviews", "--out", tmp_path / "d.json")
    code, _, err = called(*command)
    assert (code, "has no new answers that count" in err) == (2, True), err
    # Of regions that ann and bob have answered, too.
    review(again, drawn / "truth.json", 10, reviewer="cat")
    code, _, err = called(*command)
    assert (code, "new answers count: a calibration needs at least 50" in err) == (2, True), err


@pytest.mark.slow
def test_dragged_boxes_teach_where_boxes_are(tmp_path: Path) -> None:
    """People want the left of everything; a few boxes are nowhere."""
    write_scenes(tmp_path / "drawn", 120, 43)
    regions = {"rule": "fitted", "upsample": "linear", "refine": "none", "calibration": "none"}
    dataset = run(config_of(tmp_path / "drawn", tmp_path / "plain", regions=regions), QUIET)
    lines = []
    lines_of_some_images = []
    rows = rows_of(dataset)
    for number, (place, id_) in enumerate(sample_for_review(population_of(open_dataset(dataset)), 500)):
        annotation = next(one for one in rows[place]["annotations"] if one["id"] == id_)
        x, y, w, h = annotation["bbox"]
        box = (9999, 9999, 1, 1) if number % 40 == 1 else (x, y, 0.49 * w, h)
        moved: Json = {"answer": "wrong", "action": "box", "box_xywh_px": box}
        answer = moved if number % 5 else {"answer": "right"}
        key = RegionKey.of(annotation)._asdict()
        lines.append(Review(**key, reviewer="ann", **answer).model_dump_json())
        lines_of_some_images += lines[-1:] * (place < 40)
    (dataset / REVIEWS_FILE).write_text("\n".join(lines))
    command = ("calibrate", dataset, "--reviews", "--out", tmp_path / "c.json")
    assert "boxes: learned boxes are used: box recall +0." in printed(*command)
    regions["calibration"] = str(tmp_path / "c.json")
    again = run(config_of(tmp_path / "drawn", tmp_path / "again", regions=regions), QUIET)
    before, after = (
        np.mean([one["bbox"][2] for row in rows_of(made) for one in row["annotations"]])
        for made in (dataset, again)
    )
    assert after < before
    (dataset / REVIEWS_FILE).write_text("\n".join(lines_of_some_images))
    out = printed(*command)
    assert "boxes: the dataset's boxes stay: better ones take 50 images with answers" in out


def test_statistics(drawn: Path, answered: Path) -> None:
    figures = json.loads(printed("stats", answered, "--reviews", "--json"))
    precision = figures["precision"]
    assert (
        precision["low"] <= figures_of(answered, drawn).thresholds[0].precision.value <= precision["high"]
    )
    assert precision["high"] - precision["low"] < 0.25
    assert figures["agreement"]["share"] == 1.0
    assert figures["agreement"]["regions"] > 20
    assert sum(line["share"] for line in figures["curve"]) == pytest.approx(1.0, abs=0.2)
    assert figures["thresholds"][0]["precision"] == precision
    out = printed("stats", answered, "--reviews")
    assert f"however many captions name it: {figures['regions']:,} regions." in out
    names = [KINDS.get(kind, kind) for kind in figures["by_kind"]]
    assert all(f"right: phrases for {name} " in out for name in names)
    assert f"{precision['value']:.3f}" in out
    assert "calibration error" in out


def test_few_answers_tell_no_calibration_error(copy: Path) -> None:
    """Of 19, that of exact scores would be estimated as 0.3."""
    file = copy / REVIEWS_FILE
    kept: list[str] = []
    for line in file.read_text().splitlines(keepends=True):
        if '"right"' in line or '"wrong"' in line:
            kept.append(line)
    file.write_text("".join(kept[:19]))
    figures = json.loads(printed("stats", copy, "--reviews", "--json"))
    assert figures["calibration_error"] == {"value": None, "low": None, "high": None, "n": 19}
    out = printed("stats", copy, "--reviews")
    assert "calibration error of the score, without chance: 19 answers are too few" in out


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda file: file.write_text("".join(file.read_text().splitlines(keepends=True)[:30])),
        replaced('"right"', '"unsure"'),
        replaced('"annotation_id":', '"annotation_id":1'),
        replaced('"wrong"', '"right"'),
        replaced("{", "("),
    ],
)
def test_answers_that_do_not_suffice(copy: Path, tmp_path: Path, change: Callable[[Path], Any]) -> None:
    change(copy / REVIEWS_FILE)
    code, _, err = called("calibrate", copy, "--reviews", "--out", tmp_path / "c.json")
    assert code == 2
    assert_message(err)
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        "calibrate {} --reviews --out {}/c.json --truth truth.json",
        "calibrate {} --reviews --out {}/c.json --resized",
        "stats {} --reviews --where score>0.5",
    ],
)
def test_options_that_are_not_for_reviews(copy: Path, command: str) -> None:
    code, _, err = called(*command.replace("{}", str(copy)).split())
    assert code == 2
    assert_message(err)
