"""`phrasebox tune`: its figures are those of `eval`, and what is better beyond chance stays."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from pipeline.config import RunConfig, load_config, override
from pipeline.config_text import dump_yaml
from pipeline.dataset import open_dataset
from pipeline.dataset.reviews import RegionKey, Review, append_review
from pipeline.evaluate import foreign_phrases, truth_fit
from pipeline.evaluate.estimates import Estimate
from pipeline.evaluate.evaluation import evaluate_dataset
from pipeline.evaluate.evaluation_set import open_evaluation_set
from pipeline.evaluate.metrics import is_right
from pipeline.evaluate.reviews.truth import open_reviewed_dataset
from pipeline.research.tune.command import print_tuning
from pipeline.research.tune.session import CUTS, MAPS, Step, Tuning, tune_settings
from pipeline.research.tune.trials import FIGURES, Trial, TuningSession
from pipeline.run import run
from stages.contract.errors import ConfigError, InputError
from tests.build.datasets import Json, manifest_of
from tests.build.files import read_json, write_json, write_lines
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import QUIET, called, config_of, drawing, printed

METRICS = FIGURES[:-2]


drawn = drawing(16, 47)


@pytest.fixture(scope="module")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an explainer that hardly works with the model, and a bad cut."""
    regions = {"calibration": "none", "rule": "fixed", "threshold": 0.8, "upsample": "linear"}
    out = tmp_path_factory.mktemp("made")
    return Path(run(config_of(drawn, out, explain={"kind": "gem", "affinity": "none"}, regions=regions)))


SOME_MAPS = {
    "explainer": ({"explain.kind": "gem"}, {"explain.kind": "grad_eclip"}),
    "affinity": MAPS["affinity"][:2],
    "blocks": ({"explain.blocks": 2},),
}
SOME_CUTS = {
    "contrast": CUTS["contrast"],
    "rule": ({"regions.rule": "fixed", "regions.threshold": 0.9}, {"regions.rule": "otsu"}),
    "edges": CUTS["edges"],
}


def session_of(dataset: Path, truth: Path, **values: Any) -> TuningSession:
    return TuningSession(evaluation_set=open_evaluation_set(dataset, truth), console=QUIET, **values)


def reviewed_session(dataset: Path) -> TuningSession:
    evaluation_set, wrong = open_reviewed_dataset(dataset)
    return TuningSession(evaluation_set=evaluation_set, wrong=wrong, by="agreement", console=QUIET)


@pytest.fixture(scope="module")
def tuning(dataset: Path, drawn: Path) -> Tuning:
    return tune_settings(session_of(dataset, drawn / "truth.json"), maps=SOME_MAPS, cuts=SOME_CUTS)


def test_the_start_and_the_best_are_what_eval_measures(tuning, dataset, drawn, tmp_path) -> None:
    (tmp_path / "best.yaml").write_text(dump_yaml(tuning.settings))
    made = manifest_of(dataset)["config"]
    again = load_config(tmp_path / "best.yaml", [
        f"input={json.dumps(made['input'])}", f"output.path={tmp_path / 'again'}", "engine.kind=inline",
        "model.name=demo", "regions.calibration=none",
    ])  # fmt: skip
    assert again.explain.kind == tuning.best["explain.kind"] == "grad_eclip"
    for measured, path in ((tuning.start, dataset), (tuning.figures, Path(run(again)))):
        wanted = evaluate_dataset(open_evaluation_set(path, drawn / "truth.json"), QUIET).figures.metrics
        for name in METRICS:
            assert measured[name] == pytest.approx(wanted[name].value, abs=1e-6), name


def test_what_is_better_beyond_chance_stays_and_the_next_are_compared_with_it(tuning: Tuning) -> None:
    now = tuning.base["box_iou"]
    assert tuning.base == tuning.start, "there was no calibration"
    groups = list(dict.fromkeys(step.group for step in tuning.steps))
    wanted = ["explainer", "blocks", "contrast", "rule", "edges"]
    assert groups == wanted, "four blocks and an affinity behind them do not go together"
    for group in groups:
        steps = [step for step in tuning.steps if step.group == group]
        for step in steps:
            gain = step.gain
            assert gain.value == pytest.approx(step.figures["box_iou"] - now)
            assert gain.low <= gain.value <= gain.high
            assert not step.stays or gain.low > 0
        beyond = [step for step in steps if step.gain.low > 0]
        best = max(beyond, key=lambda step: step.figures["box_iou"], default=None)
        assert [step for step in steps if step.stays] == ([] if best is None else [best])
        now = now if best is None else best.figures["box_iou"]
    assert tuning.figures["box_iou"] == now
    assert tuning.gain.value == pytest.approx(now - tuning.start["box_iou"])
    assert tuning.verdict.startswith("Verdict: use the new settings: ")
    changes = [step.changes for step in tuning.steps]
    assert {"explain.kind": "gem"} not in changes, "it is the dataset's"
    assert tuning.settings["explain"]["contrast"] == tuning.best.get("explain.contrast", 0.0)


def test_the_interval_is_over_images_of_both() -> None:
    """The gain in every image is the same, so that its interval is narrow, however much the images differ."""
    hits = np.arange(20.0)
    before, after = (
        Trial(figures={}, parts=np.stack([hits + more, np.full(20, 40.0)], 1)) for more in (0, 2)
    )
    gain = after.gain_over(before)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))


@pytest.mark.slow
def test_a_dataset_with_a_calibration(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset's figures are with it, the others without; its settings stay if nothing is better than it."""
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 1)
    monkeypatch.setattr(foreign_phrases, "FEWEST_PHRASES", 1)
    truth = drawn / "truth.json"
    file = tmp_path / "c.json"
    regions = {"rule": "fitted", "upsample": "linear"}
    plain = run(config_of(drawn, tmp_path / "plain", regions=regions))
    uncut = tune_settings(session_of(Path(plain), truth), maps={}, cuts={"blur": CUTS["blur"][-1:]})
    assert (uncut.settings["regions"]["rule"], len(uncut.steps)) == ("fitted", 1), (
        "a calibration may follow"
    )
    truth_fit.write_calibration(open_evaluation_set(Path(plain), truth), file, QUIET)
    fitted = Path(run(config_of(drawn, tmp_path / "fitted", regions={**regions, "calibration": str(file)})))
    nothing = {"rule": ({"regions.rule": "fixed", "regions.threshold": 1.0},), "fitted": CUTS["fitted"]}
    tuning = tune_settings(session_of(fitted, truth), maps={}, cuts=nothing)
    wanted = evaluate_dataset(open_evaluation_set(fitted, truth), QUIET).figures.metrics
    for name in METRICS:
        assert tuning.start[name] == pytest.approx(wanted[name].value, abs=1e-6), name
    highest, halves = (step.figures for step in tuning.steps)
    assert (highest["box_recall"], highest["precision"]) == (0, None)
    assert tuning.base["box_recall"] < halves["box_recall"] < tuning.start["box_recall"]
    assert (tuning.best, tuning.settings["regions"]["calibration"]) == ({}, str(file))
    write_json(file, {**read_json(file), "bias": 1.0})
    with expect_error(ConfigError):
        tune_settings(session_of(fitted, truth), maps={}, cuts={})


def test_the_budget(dataset: Path, drawn: Path) -> None:
    tuning = tune_settings(
        session_of(dataset, drawn / "truth.json"), maps=SOME_MAPS, cuts=SOME_CUTS, minutes=0, most=4
    )
    assert (tuning.steps, tuning.best, tuning.images) == ([], {}, 4)
    assert tuning.left_out == 1 + 1 + 1 + 2 + 1, "gem has no setting blocks"
    assert tuning.settings["explain"]["kind"] == "gem"
    assert tuning.verdict.startswith("Verdict: no try was begun: the two baselines took ")


def test_settings_that_nothing_is_known_of_are_not_written(
    dataset: Path, drawn: Path, tmp_path: Path
) -> None:
    file = tmp_path / "t.yaml"
    options = ("--truth", drawn / "truth.json", "--minutes", 0, "--limit", 2)
    out = printed("tune", dataset, *options, "--out", file)
    assert not file.exists()
    assert f"{file} is not written" in out
    assert out.splitlines()[-1].startswith("Verdict: no try was begun: ")
    assert "best" not in out


def test_settings_that_are_better_are_written(tuning, dataset, drawn, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.research.tune.command.tune_settings", lambda *_, **__: tuning)
    out = printed("tune", dataset, "--truth", drawn / "truth.json", "--out", tmp_path / "t.yaml")
    assert yaml.safe_load((tmp_path / "t.yaml").read_text()) == tuning.settings
    assert out.splitlines()[-1] == tuning.verdict


def test_reviews_judge_what_people_looked_at(dataset: Path, drawn: Path, tmp_path: Path) -> None:
    """The same answers as the truth's where there are any; regions elsewhere than a wrong one are not counted."""
    made = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    with expect_error(InputError):
        open_reviewed_dataset(made)
    truth_set = open_evaluation_set(made, drawn / "truth.json")
    right = 0
    count = 0
    absent = ""
    for row in open_dataset(made).rows():
        targets = {target.phrase: target.boxes_xywh_px for target in truth_set.image_of(row).targets}
        for region in row["annotations"]:
            is_true = is_right(region["bbox"], targets.get(region["phrase"], ()))
            answer = "right" if is_true else "wrong"
            if not is_true and not absent:
                answer = absent = "absent"
            append_review(made, Review(**RegionKey.of(region)._asdict(), reviewer="ann", answer=answer))
            right += is_true
            count += 1
            break
    cuts = {"rule": SOME_CUTS["rule"], **CUTS}
    tuning = tune_settings(reviewed_session(made), maps={}, cuts=cuts)
    assert tuning.start["reviewed"] == count
    assert tuning.start["agreement"] == pytest.approx(right / count)
    assert tuning.start["targets"] == right
    assert tuning.steps[0].figures["agreement"] is not None
    assert "fitted" not in {step.group for step in tuning.steps}
    moved = [step.figures["reviewed"] for step in tuning.steps]
    assert min(moved) < count, "some regions left the wrong places"
    assert "agreement" in printed("tune", made, "--reviews", "--minutes", 0)


def test_reviews_of_one_row_say_nothing_of_another_row_with_its_image(drawn: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (drawn / "captions.jsonl").read_text().splitlines()[:4]]
    captions = [
        {"image": row["image"], "caption": text} for row in rows for text in ("A red ball.", "A blue box.")
    ]
    write_lines(tmp_path / "captions.jsonl", captions)
    source = {
        "kind": "jsonl",
        "path": str(tmp_path / "captions.jsonl"),
        "image_root": str(drawn / "images"),
    }
    made = Path(
        run(config_of(drawn, tmp_path / "made", input=source, regions={"calibration": "none"}), QUIET)
    )
    regions = [region for row in open_dataset(made).rows() for region in row["annotations"]]
    for region in regions:
        append_review(made, Review(**RegionKey.of(region)._asdict(), reviewer="ann", answer="right"))
    tuning = tune_settings(reviewed_session(made), maps={}, cuts={})
    assert tuning.start["agreement"] == 1.0
    assert tuning.start["reviewed"] == len(regions)


def test_a_file_that_cannot_be_written_is_named_before_the_work(
    dataset: Path, drawn: Path, tmp_path: Path
) -> None:
    code, out, err = called("tune", dataset, "--truth", drawn / "truth.json", "--out", tmp_path)
    assert (code, "it is a folder" in err, "box recall" in out) == (2, True, False)


def test_the_table_names_every_try(tuning: Tuning) -> None:
    printed = StringIO()
    print_tuning(tuning, Console(file=printed, width=120))
    text = printed.getvalue()
    tried = ("explainer: grad_eclip *", "rule: fixed 0.9", "blocks: 2", "contrast: 0.25")
    for words in (
        "the dataset",
        *tried,
        "not tried: affinity: explain.affinity_depth: 0.75 is block 4 of 6",
    ):
        assert words in text
    assert f"{tuning.start['box_iou']:.3f}" in text
    assert "agreement" not in text
    narrow = StringIO()
    print_tuning(tuning, Console(file=narrow, width=80))
    assert "…" not in narrow.getvalue()
    assert f"{tuning.start['box_iou']:.3f}" in narrow.getvalue()


def test_what_cannot_be_judged_is_rejected(dataset: Path, drawn: Path, tmp_path: Path) -> None:
    truth = read_json(drawn / "truth.json")
    for thing in truth["annotations"]:
        thing.pop("segmentation", None)
    write_json(tmp_path / "boxes.json", truth)
    with expect_error(ConfigError):
        tune_settings(session_of(dataset, tmp_path / "boxes.json", by="mask_iou"), most=2)
    for options in ((), ("--truth", tmp_path / "boxes.json", "--reviews")):
        code, _, err = called("tune", dataset, *options)
        assert (code, "--truth FILE or --reviews" in err) == (2, True)


def test_every_value_that_is_tried_is_one_of_the_configuration(drawn: Path, tmp_path: Path) -> None:
    values = config_of(drawn, tmp_path).model_dump(mode="json")
    for changes in [each for group in (*MAPS.values(), *CUTS.values()) for each in group]:
        section = {} if "explain.kind" in changes else values["explain"]
        plain = {**json.loads(json.dumps(values)), "explain": json.loads(json.dumps(section))}
        changed = override(plain, [f"{key}={value}" for key, value in changes.items()])
        assert isinstance(changed, RunConfig)


TUNED = {
    "steps": [Step(group="blur", changes={}, figures={}, gain=Estimate())] * 2,
    "best": {},
    "left_out": 0,
}
BETTER = {"best": {"explain.kind": "gem"}, "gain": Estimate(value=0.02, low=0.01, high=0.03, n=200)}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            {"steps": [], "left_out": 24, "baseline_s": 180.0, "images": 20},
            "no try was begun: the two baselines took 3 minutes; give --minutes 30 or --limit 10.",
        ),
        ({}, "keep the dataset's settings. Tries that are shown to be better in box_iou: 0 of 2."),
        (
            {"left_out": 3},
            "keep the dataset's settings. Tries that are shown to be better in box_iou: 0 of 2; --minutes ",
        ),
        ({"steps": []}, "keep the dataset's settings. No try suits the model and the ground truth."),
        (BETTER, "use the new settings: box_iou rises by 0.020 (95 % "),
    ],
)
def test_settings_are_advised_if_they_were_tried_and_are_better(tuning, values: Json, verdict: str) -> None:
    assert replace(tuning, **{**TUNED, **values}).verdict.startswith(f"Verdict: {verdict}")
