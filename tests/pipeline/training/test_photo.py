"""The training of `photo` end to end, tiny: all phases, resuming, and an export that open_clip loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from pipeline.finetune.fit import LATEST, TrainingFolder
from pipeline.training.__main__ import main
from pipeline.training.batches import VOCABULARY_FILE, load_vocabulary
from pipeline.training.export import export_photo
from pipeline.training.photo import MODEL_CFG, Distillation, Matching, PhotoConfig, PhotoTraining, train_photo
from stages.shared.model.catalog import sha256_of

CONFIG = PhotoConfig(
    held_out=2,
    similar_captions=1.0,  # all vectors of the random teacher are alike
    similar_phrases=1.0,
    phases=(
        Distillation(name="words", target="teacher", steps=3, captions=4, phrases=4),
        Matching(name="head", texts="bridge", steps=2, batch=4, keep=9, window=4),
        Matching(name="tail", texts="bridge", steps=2, batch=4, keep=9, window=4, trained_blocks=1),
        Distillation(name="bridge", target="bridge", steps=2, captions=4, phrases=4),
        Matching(name="joint", texts="tower", steps=2, batch=4, keep=9, window=4, trained_blocks=1),
    ),
)


@pytest.fixture(scope="module")
def run(photos: Path, _packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photo")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_packages))
        train_photo(CONFIG, photos, out)
    return out


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """A small text tower: Muon's products in bf16 take seconds a step for the real one."""
    with pytest.MonkeyPatch.context() as patch:
        text = {**MODEL_CFG["text_cfg"], "width": 48, "heads": 2, "layers": 1}
        patch.setattr("pipeline.training.photo.MODEL_CFG", {**MODEL_CFG, "text_cfg": text})
        yield


def state_of(out: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(out / LATEST, weights_only=True)
    return saved


def test_the_log_tells_every_phase(run: Path) -> None:
    lines = TrainingFolder(run).lines()
    assert [(line["phase"], line["step"]) for line in lines] == [(phase.name, phase.steps) for phase in CONFIG.phases]
    assert all(line["caption_loss"] > 0 for line in lines if "caption_loss" in line)


@pytest.mark.slow
def test_a_stopped_training_ends_with_the_same_weights_and_phases_train_only_their_own(
    run: Path, photos: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in run.glob("*.npy"):
        shutil.copy(file, tmp_path)
    take_step = PhotoTraining.take_step

    def stopped(training: PhotoTraining, phase: int, step: int) -> dict[str, torch.Tensor]:
        if (phase, step) == (2, 1):
            raise KeyboardInterrupt
        return take_step(training, phase, step)

    train_photo(CONFIG.model_copy(update={"phases": CONFIG.phases[:2]}), photos, tmp_path)
    before = state_of(tmp_path)
    assert before["step"] == 5
    with monkeypatch.context() as patch:
        patch.setattr(PhotoTraining, "take_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_photo(CONFIG, photos, tmp_path)
    assert state_of(tmp_path)["step"] == 6
    train_photo(CONFIG, photos, tmp_path)
    mine, theirs, before = state_of(run)["state"], state_of(tmp_path)["state"], before["state"]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    changed = {name for name in before if before[name].shape != mine[name].shape or not before[name].equal(mine[name])}
    blocks = {name for name in changed if ".features.blocks." in name}
    assert {name.split(".features.blocks.")[1][:3] for name in blocks} == {"6.0"}
    assert not [name for name in blocks if "conv_dw" in name or "running" in name]
    assert "model.visual.trunk.features.conv_head.weight" in changed
    assert "model.visual.trunk.features.conv_stem.weight" not in changed


def test_the_export_is_a_stock_open_clip_model_with_a_card(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "FIGURES.md").write_text("## What was measured\n\nA figure.\n", "utf-8")
    checksums = export_photo(run, tmp_path / "out", side_px=256, note="It was tiny.")
    assert checksums == {name: sha256_of(tmp_path / "out" / name) for name in checksums}
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in checksums.values())
    assert "non-commercial research and education" in card
    assert "It was tiny." in card
    assert "## What was measured\n\nA figure.\n" in card
    settings = json.loads((tmp_path / "out" / "model.json").read_text("utf-8"))["model_cfg"]
    model = open_clip.CLIP(**settings).eval()
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    tokenizer = load_vocabulary(tmp_path / "out")
    with torch.no_grad():
        texts = model.encode_text(tokenizer(["red dog", "blue boat"]))
        images = model.encode_image(torch.randn(1, 3, 256, 256))
    assert texts.shape == (2, settings["embed_dim"])
    assert images.isfinite().all()
    assert model.visual.image_size == (256, 256)
    average = state_of(run)["average"]
    assert model.logit_scale.item() == pytest.approx(float(average["scales.logs"][0]), abs=1e-2)


def test_texts_that_do_not_stand_beside_the_images_are_not_exported(run: Path, tmp_path: Path) -> None:
    saved = state_of(run)
    saved["average"]["model.text_projection"] = torch.zeros(48, 384)
    torch.save(saved, tmp_path / LATEST)
    shutil.copy(run / VOCABULARY_FILE, tmp_path)
    with pytest.raises(ValueError, match="expected texts of 256 channels, got 384"):
        export_photo(tmp_path, tmp_path / "out")


def test_what_is_missing_is_one_line_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["photo", str(tmp_path / "out"), "--photos", str(tmp_path), "--threads", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
