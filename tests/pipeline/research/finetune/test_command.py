"""`phrasebox finetune` as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from phrasebox.pipeline.dataset import open_dataset
from tests.architecture.source import ROOT
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import called, printed

SHORT = ["--model", "demo", "--set", "batch_size=4", "--epochs", "0.34", "--set", "learning_rate=1e-4"]


def test_it_tunes_and_says_where_the_model_is(inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ["finetune", inline_dataset, "--out", tmp_path, *SHORT, "--recipe", "captions"]
    text = " ".join(printed(*arguments).split())
    assert "demo begins with recipe captions: 12 images, 1 steps of 4" in text
    assert f"the tuned model is in {tmp_path / 'model'}" in text
    assert json.loads(printed(*arguments, "--json"))["steps"] == 1
    assert "other settings" in called(*arguments, "--set", "seed=4")[2]
    printed(*arguments, "--set", "seed=4", "--fresh")


@pytest.mark.slow
def test_a_tuned_photo_is_loaded_by_phrasebox_alone_and_its_card_says_so(
    inline_dataset, scenes_folder, tmp_path
) -> None:
    tuned = tmp_path / "tuned"
    out = tmp_path / "out"
    few = ["--set", "batch_size=2", "--epochs", 0.1, "--recipe", "captions"]
    printed("finetune", inline_dataset, "--out", tuned, "--model", "photo", *few)
    card = (tuned / "model" / "README.md").read_text()
    assert (
        'phrasebox.Locator("FOLDER")` and `phrasebox run --model FOLDER` load it. open_clip alone does not'
        in card
    )
    images = scenes_folder / "images"
    image = next(images.iterdir())
    locate = f"import phrasebox; print(phrasebox.Locator({str(tuned)!r})({str(image)!r}, 'red car'))"
    run = ["run", scenes_folder / "captions.jsonl", "--images", images, "--limit", 1, "--out", out]
    for arguments in (["-c", locate], ["-m", "phrasebox", *run, "--model", tuned / "model"]):
        subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)
    (row,) = open_dataset(out).rows(["error"])
    assert row["error"] is None


@pytest.mark.slow
def test_the_outputs_that_a_training_stored_serve_its_scores(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    tuned, outputs = tmp_path / "tuned", tmp_path / "outputs"
    frozen = ["--set", "frozen=[visual.trunk.features]", "--set", f"frozen_outputs={outputs}"]
    few = ["--set", "batch_size=2", "--epochs", 0.4, "--recipe", "captions"]
    printed("finetune", inline_dataset, "--out", tuned, "--model", "photo", *few, *frozen)
    stored = {path: path.stat().st_mtime_ns for path in outputs.rglob("*.safetensors")}
    assert len(stored) == 4, "two steps of two images"
    data = ["--data", scenes_folder / "captions.jsonl", "--images", scenes_folder / "images"]
    score = ["score-model", tuned, *data, "--limit", 3, "--json", "--set", "model.precision=fp32"]
    scores = [json.loads(printed(*score, *more)) for more in ([], ["--frozen-outputs", outputs])]
    assert scores[0]["answers"] == scores[1]["answers"]
    assert all(path.stat().st_mtime_ns == time for path, time in stored.items()), "none is written again"
    assert "none among no names" in called(*score, "--frozen-outputs", tuned)[2]


def test_all_keys_are_printed(inline_dataset: Path, tmp_path: Path) -> None:
    arguments = ("finetune", inline_dataset, "--out", tmp_path / "out", "--print-config")
    values = yaml.safe_load(printed(*arguments, "--set", "recipe.caption_weight=2"))
    assert (values["recipe"]["caption_weight"], values["data"]["path"]) == (2, str(inline_dataset))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "recipe.region_weigth=1"],
        ["--set", "recipe.kind=detector"],
        ["--model", "ViT-B-32"],
        ["--set", "batch_size=500"],
        ["--set", "model.precision=fp16"],
    ],
)
def test_what_cannot_be_used_is_refused(options: list[str], inline_dataset: Path, tmp_path: Path) -> None:
    code, _, err = called("finetune", inline_dataset, "--out", tmp_path, "--model", "demo", *options)
    assert code == 2
    assert_message(err)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    assert "not a finished dataset" in called("finetune", tmp_path, "--out", tmp_path / "out", *SHORT)[2]
