"""The experiment of `configs/proof`: its arithmetic, and one that is small, from drawing to table."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "configs" / "proof"
PLANS = sorted(FOLDER.glob("*.yaml"))


def _prove() -> Any:
    spec = importlib.util.spec_from_file_location("prove", FOLDER / "prove.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prove = _prove()


def scores(right: list[float], images: list[int]) -> dict[str, Any]:
    return {"images": ["a", "b"], "answers": {"regions.roi": {"images": images, "values": {"top1": right}}}}


def test_seeds_are_averaged_for_each_image() -> None:
    found = [scores([1.0, 0.0, 1.0], [0, 0, 1]), scores([1.0, 1.0, 0.0], [0, 0, 1])]
    assert prove.hits_by_image(found, "regions.roi").tolist() == [[1.5, 2.0], [0.5, 1.0]]


def test_the_gap_is_that_between_captions_and_exact_boxes() -> None:
    images = 400
    right = np.random.default_rng(1).random((3, images)) < np.array([[0.5], [0.2], [0.6]])
    own, captions, exact = (np.stack([each, np.ones(images)], axis=1) for each in right.astype(float))
    found = prove.compared(own, captions, exact)
    values = [each[:, 0].mean() for each in (own, captions, exact)]
    assert found["top1"]["value"] == pytest.approx(values[0])
    assert found["over_captions"]["value"] == pytest.approx(values[0] - values[1])
    assert found["gap_closed"]["value"] == pytest.approx((values[0] - values[1]) / (values[2] - values[1]))
    for entry in found.values():
        assert entry["low"] < entry["value"] < entry["high"]
    assert prove.compared(exact, captions, exact)["gap_closed"]["low"] == pytest.approx(1.0)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_names_what_there_is(path: Path) -> None:
    from pipeline.config import load_config
    from pipeline.finetune.config import FinetuneConfig

    plan = yaml.safe_load(path.read_text("utf-8"))
    assert {"captions", "exact", "ours", "shuffled"} <= plan["arms"].keys()
    assert (FOLDER.parents[1] / plan["run"][0]).is_file()
    for arm in plan["arms"].values():
        assert arm["data.path"] in plan["sources"]
        settings = [f"{key}={json.dumps(value)}" for key, value in {**plan["tuning"], **arm, "out": "out"}.items()]
        load_config(None, settings, model=FinetuneConfig)
    for source in plan["sources"].values():
        values = {**source, "input.kind": "jsonl", "input.path": str(path)}
        load_config(None, [f"{key}={json.dumps(value)}" for key, value in values.items()])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_experiment_goes_from_drawing_to_table(tmp_path: Path) -> None:
    plan = yaml.safe_load((FOLDER / "scenes.yaml").read_text("utf-8"))
    plan["scenes"] = {"train": {"scenes": 24, "seed": 1}, "test": {"scenes": 12, "seed": 2}}
    plan["tuning"].update(batch_size=8, epochs=0.4)
    plan["sources"] = {name: plan["sources"][name] for name in ("ours", "exact")}
    plan["arms"] = {name: plan["arms"][name] for name in ("captions", "ours", "exact")}
    plan["seeds"] = [0]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    command = [sys.executable, str(FOLDER / "prove.py"), str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second finds everything done
        subprocess.run(command, check=True, capture_output=True)
    figures = json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))
    assert figures.keys() == {"frozen", "captions", "ours", "exact", "costs"}
    assert all(0 < figures[arm]["regions.roi"]["top1"]["value"] < 1 for arm in ("frozen", "captions", "ours", "exact"))
    assert len((tmp_path / "out" / "commands.txt").read_text("utf-8").splitlines()) == 2 + 2 + 3 * 2 + 1
