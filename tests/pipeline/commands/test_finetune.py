"""`phrasebox finetune` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.finetune import RECIPES
from stages.contract.errors import ConfigError, InputError

runner = CliRunner()
SHORT = ["--model", "demo", "--batch-size", "4", "--epochs", "0.34", "--learning-rate", "1e-4"]


def test_it_tunes_and_says_where_the_model_is(inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ["finetune", str(inline_dataset), "--out", str(tmp_path), *SHORT, "--recipe", "captions"]
    answer = runner.invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0
    said = " ".join(answer.output.split())
    assert "demo begins with recipe captions: 12 images, 1 steps of 4" in said
    assert f"the tuned model is in {tmp_path / 'model'}" in said
    again = runner.invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["steps"] == 1
    with pytest.raises(Exception, match="other settings"):
        runner.invoke(app, [*arguments, "--set", "seed=4"], catch_exceptions=False)
    assert runner.invoke(app, [*arguments, "--set", "seed=4", "--fresh"], catch_exceptions=False).exit_code == 0


def test_all_keys_are_printed(inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ["finetune", str(inline_dataset), "--out", str(tmp_path / "out"), "--print-config", "--recipe", "clim"]
    answer = runner.invoke(app, [*arguments, "--set", "recipe.sides=[2]"], catch_exceptions=False)
    values = yaml.safe_load(answer.stdout)
    assert values["recipe"]["sides"] == [2]
    assert values["data"]["path"] == str(inline_dataset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "recipe.region_weigth=1"], "did you mean recipe.region_weight"),
        (["--set", "recipe.kind=detector"], "align, clim, captions"),
        (["--model", "ViT-B-32"], "needs weights"),
        (["--batch-size", "500"], "a step takes 500 images"),
        (["--set", "model.precision=fp16"], "take bf16, or fp32"),
    ],
)
def test_what_cannot_be_used_is_refused(options: list[str], said: str, inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ["finetune", str(inline_dataset), "--out", str(tmp_path), "--model", "demo", *options]
    with pytest.raises(ConfigError, match=said):
        runner.invoke(app, arguments, catch_exceptions=False)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a finished dataset"):
        runner.invoke(app, ["finetune", str(tmp_path), "--out", str(tmp_path / "out"), *SHORT], catch_exceptions=False)


def test_help_names_every_recipe() -> None:
    assert "|".join(RECIPES) in runner.invoke(app, ["finetune", "--help"]).output
