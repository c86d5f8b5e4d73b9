"""`phrasebox finetune` as a person types it."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.finetune import RECIPES
from tests.pipeline.commands.evaluated import called, printed

SHORT = ["--model", "demo", "--batch-size", "4", "--epochs", "0.34", "--learning-rate", "1e-4"]


def test_it_tunes_and_says_where_the_model_is(inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ["finetune", inline_dataset, "--out", tmp_path, *SHORT, "--recipe", "captions"]
    said = " ".join(printed(*arguments).split())
    assert "demo begins with recipe captions: 12 images, 1 steps of 4" in said
    assert f"the tuned model is in {tmp_path / 'model'}" in said
    assert json.loads(printed(*arguments, "--json"))["steps"] == 1
    assert "other settings" in called(*arguments, "--set", "seed=4")[2]
    printed(*arguments, "--set", "seed=4", "--fresh")


def test_all_keys_are_printed(inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ["finetune", inline_dataset, "--out", tmp_path / "out", "--print-config", "--recipe", "clim"]
    values = yaml.safe_load(printed(*arguments, "--set", "recipe.sides=[2]"))
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
    code, _, err = called("finetune", inline_dataset, "--out", tmp_path, "--model", "demo", *options)
    assert (code, said in err, "Traceback" in err) == (2, True, False)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    assert "not a finished dataset" in called("finetune", tmp_path, "--out", tmp_path / "out", *SHORT)[2]


def test_help_names_every_recipe() -> None:
    assert "|".join(RECIPES) in printed("finetune", "--help")
