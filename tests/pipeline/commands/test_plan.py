"""`phrasebox plan` measures with real stages and real processes."""

import json
import os
import signal
import tempfile
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.commands.plan import print_plan
from pipeline.plan import Machine, forecast
from tests.pipeline.test_plan import COSTS


def call(folder: Path, *arguments: object) -> Result:
    given = (folder / "captions.jsonl", "--images", folder / "images", "--model", "demo")
    return CliRunner().invoke(app, ["plan", *map(str, (*given, *arguments))])


def figures_of(folder: Path, *arguments: object) -> dict[str, Any]:
    answer = call(folder, *arguments, "--json")
    assert answer.exit_code == 0, answer.output
    return dict(json.loads(answer.stdout))


@pytest.mark.slow
def test_a_sample_goes_through_every_step(scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(os.listdir("."))
    never = ("--set", f"output.path={tmp_path / 'never'}")
    found = figures_of(scenes_folder, "--engine", "inline", "--samples", 9, "--total", 5000, *never)
    costs, (first, million) = found["costs"], found["forecasts"]
    assert (costs["images"], costs["failed"], costs["processes"]) == (9, 0, 1)
    assert list(costs["steps"]) == ["read", "phrases", "prepare", "explain", "regions", "write"]
    assert all(seconds > 0 for seconds in costs["steps"].values())
    assert costs["texts"] >= costs["half_texts"] > 0
    assert costs["bytes"] > 100
    assert (first["where"], first["images"], million["images"]) == ("here", 5000, 1_000_000)
    assert costs["first"] == 12, "all that there are"
    assert min(costs["ready_s"], costs["end_s"]) > 0
    assert first["seconds"] == pytest.approx(costs["ready_s"] + (5000 - 12) / first["rate"] + costs["end_s"])
    assert sorted(os.listdir(".")) == before, "nothing is written"
    assert list(tmp_path.iterdir()) == [], "nothing is left, and the run's own folder is not touched"


@pytest.mark.ray
@pytest.mark.slow
def test_processes_measure_at_once(scenes_folder: Path) -> None:
    settings = ("--set", "engine.explain_workers=2", "--samples", 4, "--cores", 64, "--gpus", 4, "--gpu-rate", 800)
    found = figures_of(scenes_folder, *settings)
    assert found["costs"]["processes"] == 2
    assert found["costs"]["steps"]["tables"] > 0
    assert found["costs"]["first"] == 12
    cluster = [each for each in found["forecasts"] if each["where"] == "on the cluster"]
    assert [each["images"] for each in cluster] == [12, 1_000_000]
    assert cluster[1]["rate"] <= 3200


@pytest.mark.slow
def test_an_empty_input_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("")
    (tmp_path / "images").mkdir()
    assert "holds no samples" in str(call(tmp_path, "--engine", "inline").exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("--set", "explain.blocks=99"), "blocks", marks=pytest.mark.slow),
        (("--gpus", 2), "--cores"),
        (("--set", "model.device=cpu", "--gpus", 2, "--cores", 8), "--gpu-rate"),
    ],
)
def test_a_run_or_a_cluster_that_cannot_be_is_rejected(arguments, said, scenes_folder) -> None:
    assert said in str(call(scenes_folder, *arguments).exception)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["_costs", "_try"])
def test_a_process_that_dies_says_so(function: str, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"pipeline.plan.{function}", _dies)
    assert "without an answer" in str(call(scenes_folder, "--engine", "inline", "--samples", 2).exception)


def _dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_table_for_people() -> None:
    text = StringIO()
    machine = Machine(cores=16, workers=1, gpus=2, gpu_rate=500.0)
    columns = [("here", forecast(COSTS, images, machine)) for images in (2_000_000, 1000, 25_000_000)]
    print_plan(COSTS, columns, Console(file=text, width=160))
    shown = text.getvalue()
    costs = ("10.0 GB", "2 processes at once", "3, 1 at once")
    for part in ("2,000,000 images", "33 minutes", "1 s", "1,000.0", "GPUs", "5.0", *costs):
        assert part in shown
