"""A run with a checkpoint of `transformers`, as people have them."""

from pathlib import Path

import pytest

from phrasebox.pipeline.config.run_config import RunConfig
from tests.build.datasets import manifest_of
from tests.pipeline.commands.evaluated import called, config_of, run_aloud
from tests.stages.model.hugging_face import save_images, transformers_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel with random weights. Only to be read."""
    folder = tmp_path_factory.mktemp("models") / "my-clip"
    transformers_clip().save_pretrained(folder)
    save_images(folder)
    return folder


def few(scenes_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join((scenes_folder / "captions.jsonl").read_text().splitlines()[:3]))
    return path


def test_a_run_says_what_the_checkpoint_is_and_keeps_it(
    folder: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    source = {"path": str(few(scenes_folder, tmp_path)), "image_root": str(scenes_folder / "images")}
    sections = {"input": source, "model": {"name": str(folder)}, "explain": {"blocks": 2}}
    _, text = run_aloud(config_of(scenes_folder, tmp_path / "out", **sections))
    origin = "(transformers CLIPModel by config.json, preprocessor_config.json)"
    assert text.count(f"model: {folder} {origin}") == 2
    manifest = manifest_of(tmp_path / "out")
    described = {
        "layout": "transformers CLIPModel",
        "described_by": "config.json, preprocessor_config.json",
    }
    assert manifest["model"] == {"name": str(folder), **described}
    assert manifest["model_fingerprint"].startswith("my-clip:")
    assert manifest["counts"]["annotated"] == 3
    assert RunConfig.model_validate(manifest["config"]).model.checkpoint == folder


@pytest.mark.parametrize(
    ("name", "message"), [("gone.safetensors", "no file or folder"), ("empty", "holds 0 files of weights")]
)
def test_a_path_that_holds_no_checkpoint_is_rejected_by_its_option(
    name, message, scenes_folder, tmp_path
) -> None:
    (tmp_path / "empty").mkdir()
    source = [few(scenes_folder, tmp_path), "--images", scenes_folder / "images"]
    code, out, err = called("run", *source, "--out", tmp_path / "out", "--model", tmp_path / name)
    assert (code, out) == (2, "")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert "--model: " in err
    assert message in err
