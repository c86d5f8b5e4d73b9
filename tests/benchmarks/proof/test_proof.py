"""The experiment of `configs/proof`: its arithmetic, and one that is small, from drawing to table."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import phrasebox
from benchmarks.proof import prove
from tests.build.datasets import Json
from tests.build.files import read_json

FOLDER = prove.ROOT / "configs" / "proof"
PLANS = sorted(FOLDER.glob("*.yaml"))


def hits(right: Any) -> Any:
    """Of `right` (seeds, images), one question each."""
    right = np.asarray(right, np.float64)
    return np.stack([right, np.ones_like(right)], axis=-1)


def test_hits_are_counted_by_seed_and_image() -> None:
    def scores(right: list[float], images: list[int]) -> Json:
        return {
            "images": ["a", "b"],
            "answers": {"regions.roi": {"images": images, "values": {"top1": right}}},
        }

    found = prove.hits_by_image([scores([1, 0, 1], [0, 0, 1]), scores([1, 1, 0], [0, 0, 1])], "regions.roi")
    assert found.tolist() == [[[1, 2], [1, 1]], [[2, 2], [0, 1]]]


def test_seeds_and_images_are_drawn_the_same_for_all_arms() -> None:
    images = 300
    rng = np.random.default_rng(1)
    shares = np.array([0.3, 0.4, 0.5, 0.6, 0.7])[:, None] * np.ones(images)
    found = prove.resampled(
        {"frozen": hits(np.full((1, images), 0.5)), "own": hits(shares), "more": hits(shares + 0.1)}
    )
    own = prove.interval(found["own"])
    assert own["value"] == pytest.approx(0.5)
    assert own["low"] < 0.42, "all images are alike, and seeds are not"
    assert own["high"] > 0.58
    gain = prove.interval(found["more"] - found["own"])
    assert list(gain.values()) == pytest.approx([0.1] * 3), "the same seeds of both"
    frozen = prove.interval(found["frozen"])
    assert list(frozen.values()) == pytest.approx([0.5] * 3), "a model that did not learn has no seeds"
    answered = (rng.random((5, images)) < 0.5).astype(float)[:1].repeat(5, axis=0)
    of_images = prove.interval(prove.resampled({"own": hits(answered)})["own"])
    assert of_images["high"] - of_images["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / images), rel=0.2)


@pytest.mark.parametrize(("exact", "count"), [(0.6, 9), (0.3, 6)])
def test_a_share_is_shown_where_there_is_something_to_share(
    exact: float, count: int, tmp_path: Path
) -> None:
    arms = {"shuffled": 0.3, "ours": 0.5, "exact": exact}
    rng = np.random.default_rng(2)
    values = prove.resampled({arm: hits(rng.random((5, 400)) < share) for arm, share in arms.items()})
    proof = prove.Proof({"name": "scenes", "primary": "regions.roi"}, tmp_path, "", 1)
    (gain,) = proof.places(values, "ours")
    assert len(gain["values"]) == count
    assert gain["values"][0] == pytest.approx(0.2, abs=0.03)
    if count == 9:
        assert gain["values"][6] == pytest.approx(gain["values"][0] / gain["values"][3])


@pytest.mark.parametrize(
    ("best", "tried"),
    [(1e-5, {1e-5, 3e-5, 1e-4, 3e-4}), (1e-4, {3e-5, 1e-4, 3e-4}), (1e-3, {3e-5, 1e-4, 3e-4, 1e-3})],
)
def test_rates_are_tried_from_the_middle_outwards(
    best: float, tried: set[float], tmp_path: Path, monkeypatch
) -> None:
    rates = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    proof = prove.Proof({"learning_rates": rates}, tmp_path, "", 1)
    trials = set()

    def chosen_by(arm: str, rate: float) -> float:
        trials.add((arm, rate))
        return -abs(rates.index(rate) - rates.index(best))

    monkeypatch.setattr(proof, "chosen_by", chosen_by)
    assert proof.choose("ours") == best
    assert trials == {("ours", rate) for rate in tried}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_names_what_there_is(path: Path) -> None:
    from phrasebox.pipeline.config.run_config import load_config
    from phrasebox.pipeline.research.finetune.config import FinetuneConfig

    plan = yaml.safe_load(path.read_text("utf-8"))
    assert {"captions", "exact", "ours", "shuffled", "text only"} <= plan["arms"].keys()
    assert plan["primary"] in plan["figures"]
    assert {arm for pair in plan["pairs"] for arm in pair} <= plan["arms"].keys()
    assert len(plan["seeds"]) >= 5
    assert all(isinstance(rate, float) for rate in plan["learning_rates"]), "YAML takes 1e-4 for a text"
    assert plan["choosing_seed"] not in plan["seeds"]
    drawn = [how["seed"] for how in plan.get("scenes", {}).values()]
    lines = [
        line for path, *ends in plan.get("lines", {}).values() for line in product([path], range(*ends))
    ]
    assert all(len(parts) == len(set(parts)) for parts in (drawn, lines)), (
        "nothing is learned, chosen and judged on"
    )
    assert not set(plan["judged"]["choose"][:2]) & set(plan["judged"]["test"][1:2])
    assert (FOLDER.parents[1] / plan["run"][0]).is_file()
    assert {how["of"] for how in plan["boxes"].values()} <= plan["sources"].keys()
    for arm in plan["arms"].values():
        assert arm["data.path"] in {**plan["sources"], **plan["boxes"]}
        settings = [
            f"{key}={json.dumps(value)}" for key, value in {**plan["tuning"], **arm, "out": "out"}.items()
        ]
        load_config(None, settings, model=FinetuneConfig)
    for source in plan["sources"].values():
        values = {**source, "input.kind": "jsonl", "input.path": str(path)}
        load_config(None, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def test_the_plan_of_scenes_has_the_arms_that_say_what_boxes_teach() -> None:
    plan = yaml.safe_load((FOLDER / "scenes.yaml").read_text("utf-8"))
    assert {"whole", "text only", "maskclip", "ours untuned"} <= plan["arms"].keys()
    assert plan["boxes"]["text only"]["usual"] == "data/usual/truth.json", "boxes of other scenes"
    assert plan["sources"]["ours untuned"]["regions.calibration"] == "none"


@pytest.mark.slow
def test_a_small_experiment_goes_from_drawing_to_table(tmp_path: Path) -> None:
    plan = yaml.safe_load((FOLDER / "scenes.yaml").read_text("utf-8"))
    counts = {"train": 24, "choose": 10, "test": 12, "usual": 20}
    plan["scenes"] = {name: {"scenes": count, "seed": count} for name, count in counts.items()}
    plan["tuning"].update(batch_size=8, epochs=0.4)
    plan["sources"] = {name: plan["sources"][name] for name in ("ours", "exact")}
    names = ("captions", "text only", "ours", "shuffled", "exact")
    plan["arms"], plan["pairs"] = {name: plan["arms"][name] for name in names}, [["exact", "ours"]]
    plan["seeds"] = [0]
    plan["learning_rates"] = [1e-4]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "benchmarks.proof.prove",
        str(tmp_path / "plan.yaml"),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=prove.ROOT)
    assert done.returncode == 0, done.stderr
    (out / "scores" / "test" / "ours-0.0001-0.json").unlink()
    said = subprocess.run(command, check=True, capture_output=True, cwd=prove.ROOT, text=True).stdout
    table, costs = read_json(out / "tables.json")["tables"]
    assert [row[0] for row in table["rows"]] == ["frozen", *names]
    assert all(0 < row[2]["low"] <= row[2]["value"] <= row[2]["high"] < 1 for row in table["rows"])
    assert [len(row[3]) for row in table["rows"]] == [1, 1, 1, 1, 1, 1]
    assert [row[0] for row in costs["rows"]] == ["ours", "exact"]
    assert "CPU hours" in said
    done = len((out / "commands.txt").read_text("utf-8").splitlines())
    assert done == 4 + 2 + 1 + 2 * len(names) * (1 + 1) + 2, (
        "a score that is lost is made again, and nothing else"
    )
    found = [
        phrasebox.open_dataset(out / "datasets" / name).rows(["annotations"])
        for name in ("ours", "text only")
    ]
    boxes = [[region["bbox"] for row in rows for region in row["annotations"]] for rows in found]
    assert len(boxes[0]) == len(boxes[1])
    assert boxes[0] != boxes[1]
