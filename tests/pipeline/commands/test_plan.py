"""`phrasebox plan` measures with real stages, in this process."""

import json
import tempfile
from io import StringIO
from pathlib import Path

import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner, Result

from phrasebox.pipeline import terminal
from phrasebox.pipeline.commands.cli import app
from phrasebox.pipeline.commands.plan import print_plan
from phrasebox.pipeline.run.plan import RAY_START_S, Machine, forecast
from tests.build.datasets import Json
from tests.pipeline.run.test_plan import COSTS


def call(folder: Path, *arguments: object) -> Result:
    given = (folder / "captions.jsonl", "--images", folder / "images", "--model", "demo")
    return CliRunner().invoke(app, ["plan", *map(str, (*given, *arguments))])


def figures_of(folder: Path, *arguments: object) -> Json:
    answer = call(folder, *arguments, "--json")
    assert answer.exit_code == 0, answer.output
    return dict(json.loads(answer.stdout))


@pytest.mark.slow
def test_a_few_images_go_through_every_step(
    scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    never = ("--set", f"output.path={tmp_path / 'never'}")
    costs = figures_of(scenes_folder, "--engine", "inline", "--total", 5000, *never)["costs"]
    assert (costs["images"], costs["failed"]) == (12, 0)
    assert all(costs[key] > 0 for key in ("host_s", "model_s", "start_s"))
    assert costs["bytes"] > 100
    names = [path.name for path in tmp_path.iterdir()]  # torch may have made a folder of its own
    assert not [name for name in names if name.startswith(("phrasebox", "never"))], "nothing is left"


def test_a_run_that_needs_no_ray_is_planned_for_one_process(scenes_folder: Path) -> None:
    small, large = (figures_of(scenes_folder, *more) for more in ((), ("--total", 5000)))
    assert small["forecasts"][0]["images"] == 12
    assert large["costs"]["start_s"] > RAY_START_S
    assert not ray.is_initialized()


def test_measuring_ends_in_time_and_says_how_far_it_is(
    scenes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_LINE_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(terminal, name, 0.0)
    monkeypatch.setattr("phrasebox.pipeline.run.plan.MEASURED_S", 0)
    answer = call(scenes_folder, "--json")
    assert json.loads(answer.stdout)["costs"]["images"] == 4
    loading, measuring, *_ = answer.stderr.splitlines()
    assert (loading, measuring.partition(":")[0]) == ("loading what the run needs", "measuring, seconds")


def test_a_cluster_has_a_column_of_its_own(scenes_folder: Path) -> None:
    figures = figures_of(scenes_folder, "--cores", 64, "--gpus", 4, "--gpu-rate", 800)
    assert [(each["where"], each["images"]) for each in figures["forecasts"]] == [
        ("here", 12),
        ("on the cluster", 12),
    ]
    assert figures["forecasts"][1]["rate"] <= 3200


@pytest.mark.slow
def test_an_empty_input_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("")
    (tmp_path / "images").mkdir()
    assert "holds no samples" in str(call(tmp_path, "--engine", "inline").exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("--set", "explain.blocks=99"), "blocks", marks=pytest.mark.slow),
        (("--gpus", 2), "--cores"),
        (("--set", "model.device=cpu", "--gpus", 2, "--cores", 8), "--gpu-rate"),
    ],
)
def test_a_run_or_a_cluster_that_cannot_be_is_rejected(arguments, words, scenes_folder) -> None:
    assert words in str(call(scenes_folder, *arguments).exception)


def test_the_table_for_people() -> None:
    text = StringIO()
    machine = Machine(cores=16, workers=1, gpus=2, gpu_rate=500.0)
    columns = {str(images): forecast(COSTS, images, machine) for images in (2_000_000, 1000, 25_000_000)}
    print_plan(COSTS, columns, Console(file=text, width=160))
    shown = text.getvalue()
    costs = ("10.0 GB", "assumed: images like the first ones", "3, 1 at once")
    for part in ("2,000,000 images", "33 minutes", "1 s", "1,000.0", "GPUs", *costs):
        assert part in shown
