"""`phrasebox plan` measures with real stages and real processes."""

from __future__ import annotations

import json
import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.commands.plan import duration, print_plan, size
from pipeline.plan.forecast import Machine, forecast
from pipeline.plan.trial import Trial
from tests.pipeline.plan.test_forecast import COSTS


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def given(folder: Path) -> tuple[object, ...]:
    return folder / "captions.jsonl", "--images", folder / "images", "--model", "demo"


def test_a_sample_goes_through_every_step(scenes_folder: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir("."))
    answer = call(*given(scenes_folder), "--engine", "inline", "--samples", 9, "--total", 5000, "--json")
    assert answer.exit_code == 0, answer.output
    found: dict[str, Any] = json.loads(answer.stdout)
    costs = found["costs"]
    assert (costs["images"], costs["failed"], costs["processes"]) == (9, 0, 1)
    assert list(costs["steps"]) == ["read", "phrases", "prepare", "explain", "regions", "write"]
    assert all(seconds > 0 for seconds in costs["steps"].values())
    assert costs["texts"] >= costs["half_texts"] > 0
    assert costs["bytes"] > 100
    assert [(each["where"], each["images"]) for each in found["forecasts"]] == [("here", 5000), ("here", 1_000_000)]
    trial = found["trial"]
    assert trial["images"] == 12, "all that there are"
    rest = 5000 - trial["images"]
    seconds = trial["ready_s"] + rest / found["forecasts"][0]["rate"] + trial["end_s"]
    assert found["forecasts"][0]["seconds"] == pytest.approx(seconds)
    assert sorted(os.listdir(".")) == before, "nothing is written"


@pytest.mark.ray
@pytest.mark.slow
def test_processes_measure_at_once(scenes_folder: Path) -> None:
    settings = ("--set", "engine.explain_workers=2", "--samples", 4, "--cores", 64, "--gpus", 4, "--gpu-rate", 800)
    answer = call(*given(scenes_folder), *settings, "--json")
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["costs"]["processes"] == 2
    assert found["costs"]["steps"]["tables"] > 0
    assert found["trial"]["images"] == 12
    cluster = [each for each in found["forecasts"] if each["where"] == "on the cluster"]
    assert [each["images"] for each in cluster] == [12, 1_000_000]
    assert cluster[1]["rate"] <= 3200


def test_what_a_run_refuses_is_refused(scenes_folder: Path, tmp_path: Path) -> None:
    answer = call(*given(scenes_folder), "--set", "explain.blocks=99", "--samples", 4)
    assert answer.exit_code != 0
    (tmp_path / "empty.jsonl").write_text("")
    answer = call(tmp_path / "empty.jsonl", "--model", "demo", "--engine", "inline")
    assert "holds no samples" in str(answer.exception)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(scenes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.sample._worker", _dies)
    settings = ("--set", "engine.explain_workers=2", "--samples", 4)
    assert "without an answer" in str(call(*given(scenes_folder), *settings).exception)


def _dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_cluster_is_described_whole(scenes_folder: Path) -> None:
    assert "--cores" in str(call(*given(scenes_folder), "--gpus", 2).exception)
    cpu = ("--set", "model.device=cpu")
    assert "--gpu-rate" in str(call(*given(scenes_folder), *cpu, "--gpus", 2, "--cores", 8).exception)


def test_the_table_for_people() -> None:
    text = StringIO()
    machine = Machine(cores=16, workers=1, gpus=2, gpu_rate=500.0, core_price=0.5, gpu_price=3.0)
    told = [("here", forecast(COSTS, 2_000_000, machine)), ("here", forecast(COSTS, 1000, machine))]
    trial = Trial(images=32, ready_s=21.0, end_s=3.0)
    print_plan(COSTS, trial, told, Console(file=text, width=160))
    shown = text.getvalue()
    for part in (
        "2,000,000 images",
        "33.3 minutes",
        "1 s",
        "1,000.0",
        "GPUs",
        "5.0",
        "10.0 GB",
        "2 processes at once",
        "21.0 s until",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("seconds", "told"), [(3, "3 s"), (89, "89 s"), (90, "1.5 minutes"), (5400, "1.5 hours"), (864000, "10.0 days")]
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(("count", "told"), [(900, "1 kB"), (2e6, "2.0 MB"), (3.25e9, "3.2 GB"), (4e12, "4.0 TB")])
def test_sizes(count: float, told: str) -> None:
    assert size(count) == told
