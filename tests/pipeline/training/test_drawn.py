"""The training of `demo` end to end, small: it learns, resumes, and exports what stock open_clip loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor

from pipeline.finetune.fit import LATEST, TrainingFolder
from pipeline.training import export
from pipeline.training.__main__ import main
from pipeline.training.batches import load_vocabulary
from pipeline.training.drawn import MODEL_CFG, Phase, SceneTraining, TrainConfig, train
from pipeline.training.model import architecture, encode_image, encode_text, positions_at
from stages.shared.model.catalog import CATALOG, sha256_of
from stages.shared.model.device import PRECISIONS

CONFIG = TrainConfig(
    batch=12,
    warmup_steps=2,
    evaluation_scenes=4,
    phases=(
        Phase(name="crops", steps=4, side_px=70, max_objects=1, min_size_rel=0.6, max_size_rel=0.95),
        Phase(name="scenes", steps=2, side_px=80, render_scale=1.5, patch_dropout=0.5, lr_end=0.5),
    ),
)

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {**MODEL_CFG["vision_cfg"], "width": 64, "layers": 2},
    "text_cfg": {**MODEL_CFG["text_cfg"], "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """A small model: Muon's products in bf16 take seconds a step for the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.drawn.MODEL_CFG", SMALL)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train")
    train(CONFIG, out)
    return out


@pytest.mark.slow
def test_the_log_has_a_line_of_every_phase(run: Path) -> None:
    log = TrainingFolder(run).lines()
    assert [(line["phase"], line["step"]) for line in log] == [("crops", 4), ("scenes", 6)]
    for line in log:
        assert 0 < line["caption_loss"] < 8
        assert 0 < line["bank_loss"] < 8
        assert 0 <= line["top1"] <= 1


@pytest.mark.slow
def test_a_stopped_training_ends_with_the_weights_and_the_log_of_a_whole_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = SceneTraining.take_step

    def stopped(training: SceneTraining, phase: int, step: int) -> dict[str, Tensor]:
        if (phase, step) == (1, 1):
            raise KeyboardInterrupt
        return take_step(training, phase, step)

    with monkeypatch.context() as patch:
        patch.setattr(SceneTraining, "take_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path)
    assert torch.load(tmp_path / LATEST, weights_only=True)["step"] == 5
    train(CONFIG, tmp_path)
    whole, resumed = (torch.load(folder / LATEST, weights_only=True) for folder in (run, tmp_path))
    for part, name in product(("model", "average"), whole["model"]):
        assert torch.allclose(whole[part][name], resumed[part][name], atol=1e-4), (part, name)
    lines = [[(line["step"], line["caption_loss"]) for line in TrainingFolder(out).lines()] for out in (run, tmp_path)]
    assert lines[0] == [(step, pytest.approx(loss, abs=1e-3)) for step, loss in lines[1]]


@pytest.mark.slow
@pytest.mark.parametrize(("instructions", "precision"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16")])
def test_the_processor_decides_the_precision_and_the_card_says_it(
    instructions: dict[str, bool], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    seen = set()

    def watched(*args: Any, **options: Any) -> Tensor:
        out = encode_image(*args, **options)
        if torch.is_grad_enabled():  # evaluation computes in fp32
            seen.add(out.dtype)
        return out

    monkeypatch.setattr("pipeline.training.drawn.encode_image", watched)
    phase = CONFIG.phases[0].model_copy(update={"steps": 1})
    train(CONFIG.model_copy(update={"batch": 2, "evaluation_scenes": 1, "phases": (phase,)}), tmp_path)
    assert seen == {PRECISIONS[precision]}
    export.export_demo(tmp_path, tmp_path / "weights", evaluation_scenes=1)
    card = (tmp_path / "weights" / "MODEL_CARD.md").read_text("utf-8")
    assert f"torch {torch.__version__}, {precision}." in card


@pytest.mark.slow
def test_the_export_loads_in_stock_open_clip_and_may_have_a_finer_grid(run: Path, tmp_path: Path) -> None:
    checksums = export.export_demo(run, tmp_path, side_px=120, evaluation_scenes=4)
    assert checksums == {name: sha256_of(tmp_path / name) for name in CATALOG["demo"].files}
    card = (tmp_path / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in checksums.values())
    assert "Nothing is claimed for photographs" in card
    settings = json.loads((tmp_path / "model.json").read_text("utf-8"))
    assert settings["model_cfg"]["vision_cfg"]["image_size"] == settings["preprocess_cfg"]["size"] == 120
    model = open_clip.CLIP(**settings["model_cfg"]).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        images = model.encode_image(torch.zeros(1, 3, 120, 120))
        texts = model.encode_text(load_vocabulary(tmp_path)(["a red car"]))
    assert images.shape == texts.shape == (1, 32)
    assert torch.isfinite(images).all()


@pytest.mark.slow
def test_the_checksums_of_the_catalogs_own_folder_are_renewed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "WEIGHTS_ROOT", tmp_path)
    (tmp_path / "checksums.json").write_text('{"photo": {"model.json": "0"}}')
    written = export.export_demo(run, evaluation_scenes=1)
    assert json.loads((tmp_path / "checksums.json").read_text()) == {"photo": {"model.json": "0"}, "demo": written}
    assert (tmp_path / "demo" / "model.safetensors").is_file()


def test_unknown_settings_are_rejected(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"phasen": []}')
    with pytest.raises(ValueError, match="phasen"):
        main(["run", str(tmp_path / "out"), "--config", str(config), "--threads", "1"])


def test_what_is_missing_is_one_line_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert main(["run", str(tmp_path / "out"), "--threads", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot make the folder")
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def model(tokenizer: SimpleTokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(**architecture(MODEL_CFG, tokenizer, 70)).eval()


def test_embeddings_are_open_clips(model: CLIP, tokenizer: SimpleTokenizer) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer(["a red car", "two blue fish next to the big yellow house", "zebra"])
    with torch.no_grad():
        assert torch.allclose(encode_image(model, images), model.encode_image(images, normalize=True), atol=2e-6)
        assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=2e-6)


def test_patches_may_come_in_any_order_and_those_left_out_are_not_seen(model: CLIP) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(2))
    keep = torch.stack([torch.randperm(49), torch.randperm(49)])
    changed = images.clone()
    changed[:, :, :10, :10] = 5.0
    all_but_first = torch.arange(1, 49).expand(2, -1)
    with torch.no_grad():
        whole = encode_image(model, images)
        assert torch.allclose(encode_image(model, images, keep=keep), whole, atol=2e-6)
        assert not torch.allclose(encode_image(model, images, keep=keep[:, :24]), whole, atol=1e-3)
        seen, other = (encode_image(model, each, keep=all_but_first) for each in (images, changed))
        assert torch.allclose(seen, other, atol=1e-6)


def test_positions_are_interpolated_and_the_class_token_kept() -> None:
    positions = torch.arange(5.0)[:, None].repeat(1, 3)
    resized = positions_at(positions, 4)
    assert resized.shape == (17, 3)
    assert torch.equal(resized[0], positions[0])
    assert float(resized[1:].mean()) == pytest.approx(2.5, abs=1e-4)
    assert torch.equal(positions_at(positions, 2), positions)
