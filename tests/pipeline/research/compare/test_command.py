"""`phrasebox compare`: its figures are those of `eval` and of the maps, and what cannot be used is refused at once."""

import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.research.compare.comparison import Comparison, ComparisonRow, compare_explainers
from phrasebox.pipeline.research.compare.figures import FIGURES, TABLES
from phrasebox.pipeline.research.compare.pictures import Source
from phrasebox.pipeline.research.compare.tables import print_comparison
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.explain import EXPLAINERS
from tests.build.files import read_json, write_json
from tests.messages import assert_message, expect_error
from tests.pipeline.commands.evaluated import QUIET, called, config_of, drawing, printed
from tests.stages.model.saved import save_model, save_tower

MODEL = {"name": "demo", "precision": "fp32", "batch_size": 4}
NAMED = "grad_eclip,rollout,maskclip,grad_eclip:heads=single:blocks=1"


drawn = drawing(3, 5)


@pytest.fixture(scope="module")
def comparison(drawn: Path) -> Comparison:
    source = Source(name="s", config=config_of(drawn, model=MODEL), truth=drawn / "truth.json", most=3)
    return compare_explainers(source, NAMED, QUIET, curve_images=1)


@pytest.fixture(scope="module")
def rows(comparison: Comparison) -> dict[str, ComparisonRow]:
    return {row.explainer: row for row in comparison.rows}


@pytest.mark.slow
def test_peaks_are_those_of_eval(rows: dict[str, ComparisonRow], drawn: Path, tmp_path: Path) -> None:
    explain = {"contrast": 0.0, "affinity": "none"}
    regions = {"smooth_patches": 0.0, "upsample": "linear", "group": "none", "calibration": "none"}
    config = config_of(drawn, tmp_path / "dataset", model=MODEL, explain=explain, regions=regions)
    measured = evaluate_dataset(
        open_evaluation_set(Path(run(config, QUIET)), drawn / "truth.json"), QUIET
    ).figures
    assert measured.counts.targets_not_among_phrases == 0
    figures = rows["grad_eclip"].figures
    for name in ("pointing", "pointing_off_centre"):
        expected = measured.metrics[name]
        assert (figures[name].n, figures[name].value) == (expected.n, pytest.approx(expected.value))
    assert figures["energy"].value == pytest.approx(measured.metrics["energy"].value, abs=0.03)


def test_every_explainer_has_its_figures(comparison: Comparison, rows: dict[str, ComparisonRow]) -> None:
    assert list(rows) == [*NAMED.split(","), "centre", "random", "raw_attention"]
    for label, row in rows.items():
        expected = set(FIGURES) - {"same_thing"}  # a drawn scene has one caption
        if row.baseline:
            expected -= {"weights_all", "phrase_swapped", "other_thing"}
        assert set(row.figures) == expected, label
        assert row.figures["pointing"].n == comparison.counts.placed
        assert row.figures["deletion_rise"].n == 1
    plain = rows["grad_eclip"]
    other = rows["maskclip"]
    assert plain.differences == {}
    gain = other.figures["energy"].value - plain.figures["energy"].value
    assert other.differences["energy"].value == pytest.approx(gain)
    assert math.isnan(other.differences["energy"].low), "three images say nothing of chance"
    assert plain.figures["mask_iou"].value > rows["random"].figures["mask_iou"].value + 0.2
    assert plain.figures["pointing"].value > rows["centre"].figures["pointing"].value + 0.2
    assert plain.figures["phrase_swapped"].value < 0.9
    assert plain.figures["weights_all"].value < 0.5
    for name in ("phrase_swapped", "other_thing"):
        assert rows["rollout"].figures[name].value == pytest.approx(1.0), "one map for all phrases"


def test_a_single_head_explains_another_cosine(comparison: Comparison) -> None:
    explained = [row.explained for row in comparison.rows if row.explained is not None]
    assert all(part.cost.encode_image > 0 for part in explained)
    multiple = explained[0].cosine_agreement
    single = explained[-1].cosine_agreement
    assert multiple.correlation == pytest.approx(1.0, abs=1e-5)
    assert multiple.mean_distance < 1e-5
    assert single.mean_distance > 0.01


def test_the_tables_have_both_kinds_of_curves_and_the_n_of_every_column(comparison: Comparison) -> None:
    printed = io.StringIO()
    print_comparison(comparison, Console(file=printed, width=200))
    tables = printed.getvalue().split("Why: ")
    assert " ".join(tables[1].split()).startswith(
        "the phrase's probability while hot pixels vanish or appear"
    )
    assert " ".join(tables[2].split()).startswith("the phrase's cosine while hot pixels vanish or appear")
    sizes = [re.findall(r"^ *n ((?: +\d+)+) *$", part, re.MULTILINE)[0].split() for part in tables]
    sizes += [re.findall(r"^ *n ((?: +\d+)+) *$", tables[2], re.MULTILINE)[1].split()]
    shown = [[name for name in figures if name != "same_thing"] for figures in TABLES.values()]
    assert sizes == [[str(comparison.rows[0].figures[name].n) for name in names] for names in shown]


def test_the_command_is_repeatable_and_needs_no_truth(drawn: Path, tmp_path: Path) -> None:
    _, saved = save_model(tmp_path)
    values = {"config": saved.config, "weights": saved.weights, "batch_size": 2}
    named = [f"--set=model.{key}={value}" for key, value in values.items()]
    given = (drawn / "captions.jsonl", "--images", drawn / "images", *named, "--limit", 3, "--faithful", 1)
    # One that keeps the aspect ratio, and so fits into no batch, and one that takes many forward passes.
    names = ["maskclip", "rollout:image_size=keep:shorter_side_px=64", "rise:masks=2"]
    command = ("compare", *given, "--explainers", ",".join(names), "--json")
    rows = json.loads(printed(*command))
    assert [row["explainer"] for row in rows] == [*names, "centre", "random", "raw_attention"]
    assert rows[0]["counts"]["placed"] == 0
    assert rows[0]["counts"]["phrases"] > 0
    assert "pointing" not in rows[0]["figures"]
    assert rows[0]["figures"]["insertion_rise"]["n"] == 1
    assert [row["figures"]["weights_all"]["n"] for row in rows[:2]] == [3, 3]
    assert "weights_all" not in rows[2]["figures"], "maps of shuffled weights by many passes are not made"
    code, out, err = called(*command)
    assert code == 0, err
    passes = 2 * (2 + 4 * len(rows))  # both ends of both curves, and 4 points for each map
    assert f"insertion and deletion take {passes} forward passes for each of 1 image\n" in err
    again = json.loads(out)
    for row in [*rows, *again]:
        row.pop("cost", None)
    assert again == rows


def test_insertion_and_deletion_are_measured_on_request(drawn: Path) -> None:
    given = (drawn / "captions.jsonl", "--images", drawn / "images", "--model", "demo", "--limit", 2)
    code, out, err = called("compare", *given, "--explainers", "maskclip", "--json")
    assert code == 0, err
    assert "insertion" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["class token", "ResNet", "SigLIP", "ConvNeXt"])
def test_all_has_a_row_for_each_explainer_or_says_why_not(tower: str, drawn: Path, tmp_path: Path) -> None:
    _, saved = save_tower(tmp_path, tower)
    named = [f"--set=model.{key}={getattr(saved, key)}" for key in ("config", "weights")]
    given = (
        drawn / "captions.jsonl",
        "--images",
        drawn / "images",
        "--truth",
        drawn / "truth.json",
        *named,
    )
    code, out, err = called("compare", *given, "--limit", 1, "--explainers", "all", "--json")
    assert code == 0, err
    rows = {row["explainer"]: row for row in json.loads(out) if not row["baseline"]}
    missing = set(re.findall(r"\w+", " ".join(re.findall(r"^not on .*: (.*) \(needed", err, re.MULTILINE))))
    assert rows.keys() | missing == set(EXPLAINERS)
    assert not rows.keys() & missing
    assert all(row["figures"]["pointing"]["n"] for row in rows.values())


REFUSED = [
    "{data} --explainers lime",
    "--model demo",
    "nothing.jsonl --model demo",
    "--set explain.blocks=1",
    "--html /proc/nothing/x.html",
]


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_used_is_rejected_before_any_work(options: str, drawn: Path) -> None:
    data = f"{drawn}/captions.jsonl --images {drawn}/images --model demo"
    code, out, err = called("compare", *options.replace("{data}", data).split())
    assert (code, out) == (2, "")
    assert_message(err)


def test_a_truth_of_other_images_is_refused(drawn: Path, tmp_path: Path) -> None:
    truth = read_json(drawn / "truth.json")
    for image in truth["images"]:
        image["file_name"] = "other-" + image["file_name"]
    write_json(tmp_path / "truth.json", truth)
    with expect_error(InputError):
        source = Source(name="s", config=config_of(drawn), truth=tmp_path / "truth.json")
        compare_explainers(source, "maskclip", QUIET, curve_images=1)
